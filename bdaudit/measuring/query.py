"""The query attack on one model under one condition, scored on held-out images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from bdaudit.blackbox import AnswerJournal, Meter, diagnose_grid
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.asking import ask
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackKind, Workshop
from bdaudit.measuring.runs import about, renamed, run_fields, run_key, titled
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.models import LoadedModel
from bdaudit.reactivation.query import reactivate_query
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_state import Milestone
from bdaudit.records import AttackRun, CurvePoint
from bdaudit.scoring import rate

__all__ = ["QUERY", "query_run"]

_N_CURVE_POINTS = 8


_N_CURVE_IMAGES = 250


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
    key = run_key(subject, images, config, compute, [s.weights_sha256 for s in surrogates])
    known = store.find(key)
    if known is not None:
        yield Progress(title, 1, 1, "already measured")
        return renamed(known, subject)
    started = time.perf_counter()
    state = store.search_state(key)
    meter = Meter(
        black_box,
        max_queries=config.max_queries,
        n_spent=0 if state is None else state.n_queries,
    )
    identity = black_box.identity()
    journal = store.journal(key) if subject.model is None else None
    result = yield from titled(
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
    scored = run_fields(subject, images, config, result, compute)
    curve = _query_curve(subject, images, result.milestones, compute)
    record = AttackRun(
        **scored,
        mode="query",
        craft_asr=result.craft_success,
        image_queries=result.n_queries,
        scoring_queries=black_box.n_queries - before,
        feedback=config.feedback,
        query_curve=curve,
        diagnostics=about(
            subject, title, [*result.diagnostics, *diagnose_grid(black_box, result.delta)]
        ),
        elapsed_s=time.perf_counter() - started,
    )
    run = ScoredRun(record, result.delta)
    store.keep(key, run)
    return run


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


def _configure(settings: AuditSettings, eps: float) -> QueryConfig:
    return QueryConfig(
        eps=eps,
        norm=settings.norm,
        max_queries=settings.max_queries,
        feedback=settings.feedback,
        schedule=settings.schedule,
        autocast=settings.compute.autocast,
    )


def _cost(settings: AuditSettings, inputs: Inputs) -> float:
    return float(settings.max_queries)


def _needs_surrogates(config: QueryConfig, cold: bool) -> bool:
    return not cold and config.schedule == "default"


def _run(
    subject: Subject,
    images: AttackImages,
    config: QueryConfig,
    inputs: Inputs,
    workshop: Workshop,
) -> Steps[tuple[ScoredRun, ...]]:
    start: tuple[LoadedModel, ...] = ()
    if _needs_surrogates(config, workshop.cold):
        start = (*(s.white for s in inputs.with_role("original")), *workshop.surrogates)
    run = yield from query_run(
        subject,
        images,
        config,
        compute=workshop.compute,
        store=workshop.store,
        surrogates=start,
    )
    return (run,)


QUERY = AttackKind(
    config=QueryConfig,
    configure=_configure,
    cost=_cost,
    run=_run,
    needs_surrogates=_needs_surrogates,
    feedback=lambda config: config.feedback,
)
