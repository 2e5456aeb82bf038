"""The transfer attack: made on surrogates, scored on models that have not seen it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackKind, Workshop
from bdaudit.measuring.runs import about, renamed, run_fields, run_key, titled
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.models import LoadedModel
from bdaudit.reactivation.transfer import TransferConfig, reactivate_transfer
from bdaudit.records import AttackRun

__all__ = ["TRANSFER", "transfer_runs"]


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
    # In float32 keys are as they were when transfers knew no other precision.
    new = () if config.autocast else ("autocast",)
    keys = [
        run_key(subject, images, config, compute, made_from, without=new) for subject in subjects
    ]
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


def _configure(settings: AuditSettings, eps: float) -> TransferConfig:
    return TransferConfig(
        eps=eps,
        norm=settings.norm,
        n_passes=settings.passes,
        strategy=settings.strategy,
        input_diversity=settings.input_diversity,
        autocast=settings.compute.autocast,
    )


def _cost(settings: AuditSettings, inputs: Inputs) -> float:
    n_surrogates = max(len(inputs.with_role("surrogate")), 1)
    return 3.0 * settings.passes * n_surrogates * len(inputs.craft_poisoned)


def _run(
    subject: Subject,
    images: AttackImages,
    config: TransferConfig,
    inputs: Inputs,
    workshop: Workshop,
) -> Steps[tuple[ScoredRun, ...]]:
    """Make delta on relatives of `subject`, and score it there.

    A perturbation carries over more readily between relatives, backdoor or not. Showing an
    innocent model what was made on the original's descendants would be too weak a null, so it
    meets what was made on its own. What is made on the original's descendants for the
    defended model is shown to all of them.
    """
    surrogates, shown = workshop.surrogates, [subject]
    if subject.role == "reference":
        surrogates = yield from workshop.relatives_of(subject, inputs)
    elif images.condition == "trigger":
        shown += [*inputs.with_role("original"), *inputs.with_role("surrogate")]
    if not surrogates:
        raise ModelError("there is no surrogate to make a perturbation on")
    return (
        yield from transfer_runs(
            shown,
            images,
            config,
            surrogates=surrogates,
            compute=workshop.compute,
            store=workshop.store,
        )
    )


TRANSFER = AttackKind(
    config=TransferConfig,
    configure=_configure,
    cost=_cost,
    run=_run,
    needs_surrogates=lambda config, cold: True,
    shown_around=True,
)
