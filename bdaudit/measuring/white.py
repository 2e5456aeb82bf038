"""The white-box attack on one model under one condition, scored on held-out images."""

from __future__ import annotations

import time

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackKind, Workshop
from bdaudit.measuring.runs import about, renamed, run_fields, run_key, titled
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.reactivation import SpecificTerms, WhiteboxConfig, reactivate_whitebox
from bdaudit.records import AttackRun

__all__ = ["WHITE", "whitebox_run"]


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
    key = run_key(subject, images, config, compute, others)
    known = store.find(key)
    if known is not None:
        yield Progress(title, 1, 1, "already measured")
        return renamed(known, subject)
    started = time.perf_counter()
    result = yield from titled(
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
        **run_fields(subject, images, config, result, compute),
        mode="white",
        objective=config.objective,
        craft_asr=result.craft_success,
        loss_trace=result.loss_trace,
        gradient_passes=result.gradient_passes,
        diagnostics=about(subject, title, result.diagnostics),
        elapsed_s=time.perf_counter() - started,
    )
    run = ScoredRun(record, result.delta)
    store.keep(key, run)
    return run


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


def _configure(settings: AuditSettings, eps: float) -> WhiteboxConfig:
    return WhiteboxConfig(
        eps=eps,
        norm=settings.norm,
        n_passes=settings.passes,
        restarts=settings.restarts,
        objective=settings.objective,
        optimizer=settings.optimizer,
        autocast=settings.compute.autocast,
    )


def _cost(settings: AuditSettings, inputs: Inputs) -> float:
    return 3.0 * settings.passes * settings.restarts * len(inputs.craft_poisoned)


def _run(
    subject: Subject,
    images: AttackImages,
    config: WhiteboxConfig,
    inputs: Inputs,
    workshop: Workshop,
) -> Steps[tuple[ScoredRun, ...]]:
    run = yield from whitebox_run(
        subject,
        images,
        config,
        compute=workshop.compute,
        store=workshop.store,
        innocent=inputs.innocent_other_than(subject),
    )
    return (run,)


WHITE = AttackKind(config=WhiteboxConfig, configure=_configure, cost=_cost, run=_run)
