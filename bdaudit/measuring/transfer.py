"""The transfer attack: made on surrogates, scored on models that have not seen it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bdaudit.cases.subjects import Subject
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.runs import about, renamed, run_fields, run_key, titled
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.models import LoadedModel
from bdaudit.reactivation.transfer import TransferConfig, reactivate_transfer
from bdaudit.records import AttackRun

__all__ = ["transfer_runs"]


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
    keys = [run_key(subject, images, config, compute, made_from) for subject in subjects]
    known = [store.find(key) for key in keys]
    if all(run is not None for run in known):
        yield Progress(title, 1, 1, "already measured")
        return tuple(
            renamed(run, subject)
            for run, subject in zip(known, subjects, strict=True)
            if run is not None
        )
    started = time.perf_counter()
    result = yield from titled(
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
        scored = run_fields(subject, images, config, result, compute)
        record = AttackRun(
            **scored,
            mode="transfer",
            loss_trace=result.loss_trace,
            gradient_passes=result.gradient_passes,
            made_on=tuple(s.name for s in surrogates),
            scoring_queries=subject.black_box.n_queries - before,
            # The search is doubtful once, not once a model that its delta is shown to.
            diagnostics=about(subject, title, result.diagnostics) if not runs else (),
            elapsed_s=time.perf_counter() - started,
        )
        run = ScoredRun(record, result.delta)
        store.keep(key, run)
        runs.append(run)
        started = time.perf_counter()
    return tuple(runs)
