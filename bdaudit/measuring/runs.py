"""What all kinds of attack share: the key a finished run is kept under, and held-out scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.plain_settings import keyed_settings
from bdaudit.foundation.progress import Steps, reworded
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages, attack_images
from bdaudit.measuring.kinds import AttackConfig, AttackResult
from bdaudit.measuring.store import ScoredRun
from bdaudit.perturbation import Norm, make_ball, random_delta
from bdaudit.records import AttackRun, Condition, Diagnostic, Mode, Rate
from bdaudit.scoring import rate
from bdaudit.version import __version__

__all__ = [
    "Scores",
    "about",
    "images_of",
    "noise_run",
    "renamed",
    "run_fields",
    "run_key",
    "score_delta",
    "titled",
]

_Result = TypeVar("_Result")


def images_of(inputs: Inputs, condition: Condition, compute: Compute) -> AttackImages:
    """Arrange the images of an audit under one condition; its seed draws the wrong target.

    Raises:
        ConfigError: A wrong target was asked for with two classes only.
    """
    return attack_images(
        condition,
        inputs.craft_poisoned,
        inputs.held_out_poisoned,
        num_classes=inputs.num_classes,
        generator=derive_generator(compute.seed, "images", condition),
    )


def noise_run(
    subject: Subject,
    images: AttackImages,
    *,
    mode: Mode,
    norm: Norm,
    eps: float,
    compute: Compute,
    steps: tuple[float, ...] = (),
    marked: bool = False,
) -> AttackRun:
    """Score a random perturbation of norm `eps`: what no search at all achieves.

    `mode` says beside which attack it stands, `steps` what the columns of a table move by, `marked`
    whether images say in a channel of theirs which box is asked about.
    """
    started = time.perf_counter()
    ball = make_ball(norm, eps, steps, marked=marked)
    generator = derive_generator(compute.seed, "noise", norm, eps)
    delta = random_delta(images.held_out.images.shape[1:], ball, generator)
    scores = score_delta(subject, images, delta, compute)
    return AttackRun(
        mode=mode,
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
class Scores:
    """Held-out figures of one perturbation; `delta_only` where the condition has a trigger."""

    asr: Rate
    delta_only: Rate | None
    true_label_acc: Rate


def run_fields(
    subject: Subject,
    images: AttackImages,
    config: AttackConfig,
    result: AttackResult,
    compute: Compute,
) -> dict[str, Any]:
    """Score a search's delta on held-out images; return what all kinds of attack record."""
    scores = score_delta(subject, images, result.delta, compute)
    return {
        "model": subject.name,
        "role": subject.role,
        "condition": images.condition,
        "norm": config.norm,
        "eps": config.eps,
        "target_label": images.target_label,
        "seed": compute.seed,
        "asr": scores.asr,
        "delta_only": scores.delta_only,
        "true_label_acc": scores.true_label_acc,
        "delta_norm": result.delta_norm,
        "delta_sha256": digest_tensors({"delta": result.delta}),
    }


def score_delta(
    subject: Subject, condition: AttackImages, delta: Tensor, compute: Compute
) -> Scores:
    """Count held-out successes of `delta`, with the trigger and, where there is one, without."""
    half = condition.held_out
    answers = ask(subject, half.images, compute, delta=delta)
    bare = ask(subject, half.clean, compute, delta=delta) if condition.has_trigger else None
    return Scores(
        asr=rate(answers == half.targets),
        delta_only=None if bare is None else rate(bare == half.targets),
        true_label_acc=rate(answers == half.labels),
    )


def titled(steps: Steps[_Result], title: str) -> Steps[_Result]:
    """Run an inner step under the outer step's name."""
    return reworded(steps, lambda event: replace(event, step=title))


def about(
    subject: Subject, title: str, diagnostics: Iterable[Diagnostic]
) -> tuple[Diagnostic, ...]:
    """Return diagnostics of an attack that name the attack and the model."""
    return tuple(
        d.model_copy(update={"subject": subject.name, "message": f"{title}: {d.message}"})
        for d in diagnostics
    )


def renamed(run: ScoredRun, subject: Subject) -> ScoredRun:
    """Return a run that was made before, of the same weights, under the name they have now."""
    record = run.record.model_copy(
        update={"model": subject.name, "role": subject.role, "elapsed_s": 0.0}
    )
    return ScoredRun(record, run.delta)


def run_key(
    subject: Subject,
    images: AttackImages,
    config: AttackConfig,
    compute: Compute,
    others: Sequence[str | None],
    *,
    without: Collection[str] = (),
) -> str:
    """Digest everything that determines a run; two runs with one key are the same run.

    Settings named in `without` are left out, as those that came later than runs that are kept.
    """
    parts = {
        "version": __version__,
        "model": sorted(subject.what_answers().items()),
        "images": images.sha256,
        "others": list(others),
        "condition": images.condition,
        "attack": type(config).__name__,
        # Of images there are no steps, nor were there any in runs that are kept.
        "config": {
            k: v
            for k, v in keyed_settings(config).items()
            if k not in without and (k, v) != ("steps", ())
        },
        "seed": compute.seed,
        "device": compute.device.type,
    }
    if "marked" in keyed_settings(config):
        parts["laid"] = "over the box"  # not over the whole picture, as at first
    if compute.precision != "float32":
        parts["precision"] = compute.precision
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
