"""One attack on one model under one condition, scored on held-out images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from bdaudit.auditing.inputs import Subject
from bdaudit.auditing.settings import ComputeSettings
from bdaudit.auditing.store import RunStore, ScoredRun
from bdaudit.blackbox import AnswerJournal, Meter, diagnose_grid
from bdaudit.controls import AttackImages
from bdaudit.digests import digest_tensors
from bdaudit.models import LoadedModel
from bdaudit.perturbation import Norm, make_ball, random_delta
from bdaudit.precision import autocasting
from bdaudit.progress import Progress, Steps, reworded
from bdaudit.reactivation import (
    SpecificTerms,
    WhiteboxConfig,
    WhiteboxResult,
    reactivate_whitebox,
)
from bdaudit.reactivation.query import QueryResult, reactivate_query
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_state import Milestone
from bdaudit.reactivation.transfer import TransferConfig, TransferResult, reactivate_transfer
from bdaudit.results import AttackRun, CurvePoint, Diagnostic, Mode, Rate
from bdaudit.scoring import predict, predict_logits, rate
from bdaudit.settings import Precision
from bdaudit.version import __version__

__all__ = [
    "Compute",
    "ask",
    "derive_generator",
    "keep_answers",
    "noise_run",
    "query_run",
    "transfer_runs",
    "whitebox_run",
]

_Result = TypeVar("_Result")

_N_CURVE_POINTS = 8
_N_CURVE_IMAGES = 250


@dataclass(frozen=True)
class Compute:
    """Where everything is computed, from which seed and in which arithmetic.

    Attributes:
        device: Of models and images.
        seed: From which every random draw derives.
        batch_size: Images in one forward pass when scoring.
        precision: Of attacks, their scoring, and everything that is trained.
    """

    device: torch.device
    seed: int
    batch_size: int
    precision: Precision = "float32"

    @classmethod
    def of(cls, settings: ComputeSettings, device: torch.device) -> Compute:
        """Return what settings ask for, on the device that they come to here."""
        return cls(device, settings.seed, settings.batch_size, settings.precision)

    @property
    def autocast(self) -> Literal["bf16"] | None:
        """The precision as the methods' own settings call it."""
        return "bf16" if self.precision == "bfloat16" else None


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
    store: RunStore,
    innocent: Subject | None = None,
) -> Steps[ScoredRun]:
    """Attack `subject` white-box and score the perturbation on held-out images.

    Args:
        subject: The model and its part.
        images: The condition's craft and held-out halves.
        config: Radius, norm, passes; the same for every model under comparison.
        compute: Device, batch size for scoring, and the audit's seed. The attack's own random
            stream derives from the seed, the condition and eps, and not from the model.
        store: Finished runs; one made from the same weights, images, settings and seed is given
            back without computing.
        innocent: Another model that the specific objective leaves right, where there is one.

    Returns:
        The scored run.

    Raises:
        NumericsError: The model returned NaN or infinite scores.
    """
    title = f"white box on {subject.name}, {images.condition.replace('_', ' ')}, eps {config.eps:g}"
    if config.objective != "specific":
        innocent = None  # the standard one does not look at it, and runs must be found again
    others = () if innocent is None else (innocent.white.weights_sha256,)
    key = _key(subject, images, config, compute, others)
    known = store.find(key)
    if known is not None:
        yield Progress(title, 1, 1, "already measured")
        return _renamed(known, subject)
    started = time.perf_counter()
    result = yield from _titled(
        reactivate_whitebox(
            subject.white.classifier,
            images.craft.images,
            images.craft.targets,
            config=config,
            generator=derive_generator(compute.seed, "white", images.condition, config.eps),
            specific=_specific_terms(images, config, innocent),
        ),
        title,
    )
    record = AttackRun(
        **_run_fields(subject, images, config, result, compute),
        mode="white",
        objective=config.objective,
        craft_asr=result.craft_success,
        loss_trace=result.loss_trace,
        gradient_passes=result.gradient_passes,
        diagnostics=_about(subject, title, result.diagnostics),
        elapsed_s=time.perf_counter() - started,
    )
    run = ScoredRun(record, result.delta)
    store.keep(key, run)
    return run


def query_run(
    subject: Subject,
    images: AttackImages,
    config: QueryConfig,
    *,
    compute: Compute,
    store: RunStore,
    surrogates: Sequence[LoadedModel] = (),
) -> Steps[ScoredRun]:
    """Attack `subject` by asking alone and score the perturbation on held-out images.

    Args:
        subject: The model and its part.
        images: The condition's craft and held-out halves.
        config: Radius, norm, budget, feedback; the same for every model under comparison.
        compute: As for `whitebox_run`.
        store: Finished runs, and the state of an interrupted search to go on with.
        surrogates: Models that may resemble the one asked; the same for every model.

    Returns:
        The scored run, with held-out success against image queries. Scoring is counted apart.

    Raises:
        RemoteError: A served model could not be asked any more; the state is kept in the store.
    """
    title = f"queries to {subject.name}, {images.condition.replace('_', ' ')}, eps {config.eps:g}"
    black_box = subject.black_box
    key = _key(subject, images, config, compute, [s.weights_sha256 for s in surrogates])
    known = store.find(key)
    if known is not None:
        yield Progress(title, 1, 1, "already measured")
        return _renamed(known, subject)
    started = time.perf_counter()
    state = store.search_state(key)
    meter = Meter(
        black_box,
        max_queries=config.max_queries,
        n_spent=0 if state is None else state.n_queries,
    )
    identity = black_box.identity()
    journal = store.journal(key) if subject.model is None else None
    result = yield from _titled(
        reactivate_query(
            partial(_ask_through, meter, journal),
            images.craft.images,
            images.craft.targets,
            config=config,
            generator=derive_generator(compute.seed, "query", images.condition, config.eps),
            surrogates=[s.classifier for s in surrogates],
            state=state,
            checkpoint=store.checkpoint(key),
            identity={
                "kind": identity.kind,
                "model": identity.sha256 or identity.source,
                **identity.details,
            },
        ),
        title,
    )
    before = black_box.n_queries
    scored = _run_fields(subject, images, config, result, compute)
    curve = _query_curve(subject, images, result.milestones, compute)
    record = AttackRun(
        **scored,
        mode="query",
        craft_asr=result.craft_success,
        image_queries=result.n_queries,
        scoring_queries=black_box.n_queries - before,
        feedback=config.feedback,
        query_curve=curve,
        diagnostics=_about(
            subject, title, [*result.diagnostics, *diagnose_grid(black_box, result.delta)]
        ),
        elapsed_s=time.perf_counter() - started,
    )
    run = ScoredRun(record, result.delta)
    store.keep(key, run)
    return run


def transfer_runs(
    subjects: Sequence[Subject],
    images: AttackImages,
    config: TransferConfig,
    *,
    surrogates: Sequence[LoadedModel],
    compute: Compute,
    store: RunStore,
) -> Steps[tuple[ScoredRun, ...]]:
    """Make one perturbation on `surrogates` and score it on every one of `subjects`, unseen.

    Args:
        subjects: Models the perturbation is shown to, held-out images only; one or more.
        images: The condition's craft and held-out halves.
        config: Radius, norm, passes, strategy.
        surrogates: Models that are differentiated through; one or more.
        compute: As for `whitebox_run`.
        store: Finished runs; the search is spared when all are there.

    Returns:
        The scored runs in the order of `subjects`.

    Raises:
        NumericsError: A surrogate or a subject returned NaN or infinite scores.
    """
    title = f"transfer to {subjects[0].name}, {images.condition.replace('_', ' ')}, "
    title += f"eps {config.eps:g}"
    made_from = [s.weights_sha256 for s in surrogates]
    keys = [_key(subject, images, config, compute, made_from) for subject in subjects]
    known = [store.find(key) for key in keys]
    if all(run is not None for run in known):
        yield Progress(title, 1, 1, "already measured")
        return tuple(
            _renamed(run, subject)
            for run, subject in zip(known, subjects, strict=True)
            if run is not None
        )
    started = time.perf_counter()
    result = yield from _titled(
        reactivate_transfer(
            [s.classifier for s in surrogates],
            images.craft.images,
            images.craft.targets,
            config=config,
            generator=derive_generator(compute.seed, "transfer", images.condition, config.eps),
        ),
        title,
    )
    runs: list[ScoredRun] = []
    for key, subject in zip(keys, subjects, strict=True):
        before = subject.black_box.n_queries
        scored = _run_fields(subject, images, config, result, compute)
        record = AttackRun(
            **scored,
            mode="transfer",
            loss_trace=result.loss_trace,
            gradient_passes=result.gradient_passes,
            made_on=tuple(s.name for s in surrogates),
            scoring_queries=subject.black_box.n_queries - before,
            # The search is doubtful once, not once a model that its delta is shown to.
            diagnostics=_about(subject, title, result.diagnostics) if not runs else (),
            elapsed_s=time.perf_counter() - started,
        )
        run = ScoredRun(record, result.delta)
        store.keep(key, run)
        runs.append(run)
        started = time.perf_counter()
    return tuple(runs)


def keep_answers(subjects: Iterable[Subject], store: RunStore) -> None:
    """Have everything that is answered by models that can only be asked kept in `store`."""
    for subject in subjects:
        if subject.model is None:
            subject.black_box.journal = store.journal("audit")


def _ask_through(meter: Meter, journal: AnswerJournal | None, images: Tensor) -> Tensor:
    """Ask a search's question, its answers kept in a journal of its own until it is complete."""
    black_box = meter.black_box
    outer, black_box.journal = black_box.journal, journal
    try:
        return meter.ask(images)
    finally:
        black_box.journal = outer


def _query_curve(
    subject: Subject,
    condition: AttackImages,
    milestones: Sequence[Milestone],
    compute: Compute,
) -> tuple[CurvePoint, ...]:
    """Score what the search would have given after fewer queries, on the first held-out images.

    A few points on a part of the images, since each of them is paid for as well.
    """
    if not milestones:
        return ()
    chosen = sorted(
        {round(k * (len(milestones) - 1) / (_N_CURVE_POINTS - 1)) for k in range(_N_CURVE_POINTS)}
    )
    half = condition.held_out
    few, targets = half.images[:_N_CURVE_IMAGES], half.targets[:_N_CURVE_IMAGES]
    return tuple(
        CurvePoint(
            n_queries=milestones[k].n_queries,
            asr=rate(ask(subject, few, compute, delta=milestones[k].delta) == targets.cpu()),
        )
        for k in chosen
    )


def noise_run(
    subject: Subject,
    images: AttackImages,
    *,
    mode: Mode,
    norm: Norm,
    eps: float,
    compute: Compute,
) -> AttackRun:
    """Score a random perturbation of norm `eps`: what no search at all achieves.

    `mode` says beside which attack it stands.
    """
    started = time.perf_counter()
    ball = make_ball(norm, eps)
    generator = derive_generator(compute.seed, "noise", norm, eps)
    delta = random_delta(images.held_out.images.shape[1:], ball, generator)
    scores = _score(subject, images, delta, compute)
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
class _Scores:
    asr: Rate
    delta_only: Rate | None
    true_label_acc: Rate


def _run_fields(
    subject: Subject,
    images: AttackImages,
    config: WhiteboxConfig | QueryConfig | TransferConfig,
    result: WhiteboxResult | QueryResult | TransferResult,
    compute: Compute,
) -> dict[str, Any]:
    """Score a search's delta on held-out images; return what all kinds of attack record."""
    scores = _score(subject, images, result.delta, compute)
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


def _score(subject: Subject, condition: AttackImages, delta: Tensor, compute: Compute) -> _Scores:
    """Count held-out successes of `delta`, with the trigger and, where there is one, without."""
    half = condition.held_out
    answers = ask(subject, half.images, compute, delta=delta)
    bare = ask(subject, half.clean, compute, delta=delta) if condition.has_trigger else None
    return _Scores(
        asr=rate(answers == half.targets),
        delta_only=None if bare is None else rate(bare == half.targets),
        true_label_acc=rate(answers == half.labels),
    )


def ask(
    subject: Subject, images: Tensor, compute: Compute, *, delta: Tensor | None = None
) -> Tensor:
    """Return the top labels (N,) of `images`, perturbed by `delta` where one is given.

    A loaded model is run as it is; one that can only be asked is asked, and counts it. With a
    delta, which is the scoring of an attack, a loaded model computes in the precision of
    `compute`, otherwise in float32.
    """
    if subject.model is None:
        return predict(subject.black_box.ask, images, batch_size=compute.batch_size, delta=delta)
    ask_model = partial(
        predict,
        subject.model.classifier,
        batch_size=compute.batch_size,
        device=compute.device,
        delta=delta,
    )
    if delta is None or compute.precision == "float32":
        return ask_model(images)
    with autocasting(compute.device, compute.precision):
        scores = predict_logits(
            subject.model.classifier,
            images,
            batch_size=compute.batch_size,
            device=compute.device,
            delta=delta,
        )
    labels, best = scores.argmax(dim=1), scores.topk(2).values
    # Rounded scores may tie, and the lower class would win every tie: the target often is class 0.
    tied = best[:, 0] == best[:, 1]
    if tied.any():
        labels[tied] = ask_model(images[tied.to(images.device)])
    return labels


def _titled(steps: Steps[_Result], title: str) -> Steps[_Result]:
    """Run an inner step under the outer step's name."""
    return reworded(steps, lambda event: replace(event, step=title))


def _specific_terms(
    images: AttackImages, config: WhiteboxConfig, innocent: Subject | None
) -> SpecificTerms | None:
    if config.objective != "specific":
        return None
    return SpecificTerms(
        clean=images.craft.clean,
        labels=images.craft.labels,
        reference=None if innocent is None else innocent.white.classifier,
    )


def _about(
    subject: Subject, title: str, diagnostics: Iterable[Diagnostic]
) -> tuple[Diagnostic, ...]:
    return tuple(
        d.model_copy(update={"subject": subject.name, "message": f"{title}: {d.message}"})
        for d in diagnostics
    )


def _renamed(run: ScoredRun, subject: Subject) -> ScoredRun:
    record = run.record.model_copy(
        update={"model": subject.name, "role": subject.role, "elapsed_s": 0.0}
    )
    return ScoredRun(record, run.delta)


def _determining(config: WhiteboxConfig | QueryConfig | TransferConfig) -> dict[str, Any]:
    """Return the settings as keys have had them since before transfers knew another precision."""
    settings = asdict(config)
    if isinstance(config, TransferConfig) and config.autocast is None:
        del settings["autocast"]
    return settings


def _key(
    subject: Subject,
    images: AttackImages,
    config: WhiteboxConfig | QueryConfig | TransferConfig,
    compute: Compute,
    others: Sequence[str | None],
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
        "model": sorted(subject.what_answers().items()),
        "images": digest_tensors(tensors),
        "others": list(others),
        "condition": images.condition,
        "attack": type(config).__name__,
        "config": _determining(config),
        "seed": compute.seed,
        "device": compute.device.type,
    }
    if compute.precision != "float32":
        parts["precision"] = compute.precision
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
