"""One attack on one model under one condition, scored on held-out images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from bdaudit.auditing.inputs import Subject
from bdaudit.controls import AttackImages
from bdaudit.digests import digest_tensors
from bdaudit.perturbation import Norm, make_ball, random_delta
from bdaudit.progress import Progress, Steps
from bdaudit.reactivation import SpecificTerms, WhiteboxConfig, reactivate_whitebox
from bdaudit.results import AttackRun, Rate
from bdaudit.scoring import predict, rate
from bdaudit.version import __version__

__all__ = ["Compute", "RunCache", "ScoredRun", "derive_generator", "noise_run", "whitebox_run"]

RunCache = MutableMapping[str, AttackRun]
"""Finished runs by the digest of everything that determined them."""

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Compute:
    """Where runs are computed, and from which seed."""

    device: torch.device
    seed: int
    batch_size: int


@dataclass(frozen=True)
class ScoredRun:
    """A run's record, with its perturbation (1, C, H, W) unless it came from the cache."""

    record: AttackRun
    delta: Tensor | None


def derive_generator(seed: int, *parts: object) -> torch.Generator:
    """Return a CPU generator seeded from `seed` and what is being done.

    The same parts give the same stream, so every model under comparison meets the same attack,
    and adding a step to an audit does not shift the draws of the others.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def whitebox_run(
    subject: Subject,
    images: AttackImages,
    config: WhiteboxConfig,
    *,
    compute: Compute,
    innocent: Subject | None = None,
    cache: RunCache | None = None,
) -> Steps[ScoredRun]:
    """Attack `subject` white-box and score the perturbation on held-out images.

    Args:
        subject: The model and its part.
        images: The condition's craft and held-out halves.
        config: Radius, norm, passes; the same for every model under comparison.
        compute: Device, batch size for scoring, and the audit's seed. The attack's own random
            stream derives from the seed, the condition and eps, and not from the model.
        innocent: Another model that the specific objective leaves right, where there is one.
        cache: Finished runs; one made from the same weights, images, settings and seed is given
            back without computing, and then without its perturbation.

    Returns:
        The scored run.

    Raises:
        NumericsError: The model returned NaN or infinite scores.
    """
    title = f"white box on {subject.name}, {images.condition.replace('_', ' ')}, eps {config.eps:g}"
    key = _cache_key(subject, images, config, compute, innocent)
    if cache is not None and key in cache:
        yield Progress(title, 1, 1, "already measured")
        return ScoredRun(_renamed(cache[key], subject), None)
    started = time.perf_counter()
    result = yield from _titled(
        reactivate_whitebox(
            subject.model.classifier,
            images.craft.images,
            images.craft.targets,
            config=config,
            generator=derive_generator(compute.seed, "white", images.condition, config.eps),
            specific=_specific_terms(images, config, innocent),
        ),
        title,
    )
    scores = _score(subject, images, result.delta, compute)
    record = AttackRun(
        mode="white",
        model=subject.name,
        role=subject.role,
        condition=images.condition,
        objective=config.objective,
        norm=config.norm,
        eps=config.eps,
        target_label=images.target_label,
        seed=compute.seed,
        asr=scores.asr,
        delta_only=scores.delta_only,
        true_label_acc=scores.true_label_acc,
        craft_asr=result.craft_success,
        loss_trace=result.loss_trace,
        gradient_passes=result.gradient_passes,
        delta_norm=result.delta_norm,
        delta_sha256=digest_tensors({"delta": result.delta}),
        diagnostics=tuple(
            d.model_copy(update={"subject": subject.name, "message": f"{title}: {d.message}"})
            for d in result.diagnostics
        ),
        elapsed_s=time.perf_counter() - started,
    )
    if cache is not None:
        cache[key] = record
    return ScoredRun(record, result.delta)


def noise_run(
    subject: Subject, images: AttackImages, *, norm: Norm, eps: float, compute: Compute
) -> AttackRun:
    """Score a random perturbation of norm `eps`: what no search at all achieves."""
    started = time.perf_counter()
    ball = make_ball(norm, eps)
    generator = derive_generator(compute.seed, "noise", norm, eps)
    delta = random_delta(images.held_out.images.shape[1:], ball, generator)
    scores = _score(subject, images, delta, compute)
    return AttackRun(
        mode="white",
        model=subject.name,
        role=subject.role,
        condition="noise",
        norm=norm,
        eps=eps,
        target_label=images.target_label,
        seed=compute.seed,
        asr=scores.asr,
        delta_only=scores.delta_only,
        true_label_acc=scores.true_label_acc,
        delta_norm=float(ball.norm(delta)),
        delta_sha256=digest_tensors({"delta": delta}),
        elapsed_s=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Scores:
    asr: Rate
    delta_only: Rate | None
    true_label_acc: Rate


def _score(subject: Subject, condition: AttackImages, delta: Tensor, compute: Compute) -> _Scores:
    """Count held-out successes of `delta`, with the trigger and, where there is one, without."""

    def ask(images: Tensor) -> Tensor:
        return predict(
            subject.model.classifier,
            images,
            batch_size=compute.batch_size,
            device=compute.device,
            delta=delta,
        )

    half = condition.held_out
    answers = ask(half.images)
    bare = ask(half.clean) if condition.has_trigger else None
    return _Scores(
        asr=rate(answers == half.targets),
        delta_only=None if bare is None else rate(bare == half.targets),
        true_label_acc=rate(answers == half.labels),
    )


def _titled(steps: Steps[_Result], title: str) -> Steps[_Result]:
    """Run an inner step under the outer step's name."""
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            yield replace(event, step=title)
    finally:
        steps.close()


def _specific_terms(
    images: AttackImages, config: WhiteboxConfig, innocent: Subject | None
) -> SpecificTerms | None:
    if config.objective != "specific":
        return None
    return SpecificTerms(
        clean=images.craft.clean,
        labels=images.craft.labels,
        reference=None if innocent is None else innocent.model.classifier,
    )


def _renamed(run: AttackRun, subject: Subject) -> AttackRun:
    return run.model_copy(update={"model": subject.name, "role": subject.role, "elapsed_s": 0.0})


def _cache_key(
    subject: Subject,
    images: AttackImages,
    config: WhiteboxConfig,
    compute: Compute,
    innocent: Subject | None,
) -> str:
    """Digest everything that determines a run; two runs with one key are the same run."""
    tensors = {
        f"{half}.{name}": value
        for half, part in (("craft", images.craft), ("held_out", images.held_out))
        for name, value in (
            ("images", part.images),
            ("clean", part.clean),
            ("targets", part.targets),
        )
    }
    parts = {
        "version": __version__,
        "weights": subject.model.weights_sha256,
        "images": digest_tensors(tensors),
        "innocent": None if innocent is None else innocent.model.weights_sha256,
        "condition": images.condition,
        "config": asdict(config),
        "seed": compute.seed,
        "device": compute.device.type,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
