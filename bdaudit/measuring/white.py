"""White-box attacks on one model, several at once, each scored on held-out images."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.subjects import Inputs, Subject
from bdaudit.errors import BdauditError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.measuring.compute import Compute, derive_generator
from bdaudit.measuring.conditions import AttackImages
from bdaudit.measuring.kinds import AttackKind, Together, Workshop
from bdaudit.measuring.runs import about, renamed, run_fields, run_key, titled
from bdaudit.measuring.store import RunStore, ScoredRun
from bdaudit.reactivation import (
    Search,
    SpecificTerms,
    WhiteboxConfig,
    WhiteboxResult,
    most_together,
    reactivate_together,
)
from bdaudit.records import AttackRun

__all__ = ["WHITE", "whitebox_run", "whitebox_runs"]


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
    together = whitebox_runs(
        subject, [(images, config)], compute=compute, store=store, innocent=innocent
    )
    (outcome,) = yield from together
    if isinstance(outcome, BdauditError):
        raise outcome
    return outcome


def whitebox_runs(
    subject: Subject,
    attacks: Sequence[tuple[AttackImages, WhiteboxConfig]],
    *,
    compute: Compute,
    store: RunStore,
    innocent: Subject | None = None,
) -> Steps[tuple[ScoredRun | BdauditError, ...]]:
    """Attack `subject` white-box several times at once; each is found again, and kept, by itself.

    Where one of them is not kept yet, all are made again, and what is kept is given back as it
    is: so every perturbation comes out of the same batch as the first time. On a card the batch is
    as wide as free memory allows, so there another time may round otherwise.

    Args:
        subject: The model and its part.
        attacks: Conditions with settings, which differ in eps alone.
        compute: As for `whitebox_run`.
        store: As for `whitebox_run`.
        innocent: As for `whitebox_run`.

    Returns:
        Each attack's scored run, or why it failed.
    """
    if attacks[0][1].objective != "specific":
        innocent = None  # the standard one does not look at it, and runs must be found again
    others = () if innocent is None else (innocent.white.weights_sha256,)
    keys = [run_key(subject, images, config, compute, others) for images, config in attacks]
    known = [store.find(key) for key in keys]
    title = _title(subject, attacks)
    if None not in known:
        yield Progress(title, 1, 1, "already measured")
        return tuple(renamed(run, subject) for run in known if run is not None)
    started = time.perf_counter()
    searches = [
        Search(
            triggered=compute.sent(images.craft.images),
            targets=images.craft.targets,
            config=config,
            generator=derive_generator(compute.seed, "white", images.condition, config.eps),
            specific=_specific_terms(images, config, innocent),
        )
        for images, config in attacks
    ]
    steps = titled(reactivate_together(subject.white.classifier, searches), title)
    found = yield from steps
    passes = [0.0 if isinstance(o, BdauditError) else o.gradient_passes for o in found]
    a_pass = (time.perf_counter() - started) / max(1e-9, sum(passes))
    outcomes: list[ScoredRun | BdauditError] = []
    for attack, key, run, outcome, n_passes in zip(
        attacks, keys, known, found, passes, strict=True
    ):
        if run is not None:
            outcomes.append(renamed(run, subject))
        elif isinstance(outcome, BdauditError):
            outcomes.append(outcome)
        else:
            try:
                made = _scored(subject, attack, outcome, compute, a_pass * n_passes)
            except BdauditError as error:
                outcomes.append(error)
                continue
            store.keep(key, made)
            outcomes.append(made)
    return tuple(outcomes)


def _title(subject: Subject, attacks: Sequence[tuple[AttackImages, WhiteboxConfig]]) -> str:
    conditions = {images.condition: None for images, _ in attacks}
    words = " and ".join(condition.replace("_", " ") for condition in conditions)
    radii = [config.eps for _, config in attacks]
    if len(attacks) == 1:
        return f"white box on {subject.name}, {words}, eps {radii[0]:g}"
    eps = f"{min(radii):g}" + ("" if min(radii) == max(radii) else f" to {max(radii):g}")
    return f"white box on {subject.name}, {len(attacks)} attacks at once: {words}, eps {eps}"


def _scored(
    subject: Subject,
    attack: tuple[AttackImages, WhiteboxConfig],
    result: WhiteboxResult,
    compute: Compute,
    search_s: float,
) -> ScoredRun:
    """Score what a search found on held-out images; `search_s` is its share of the time."""
    images, config = attack
    started = time.perf_counter()
    title = _title(subject, [attack])
    record = AttackRun(
        **run_fields(subject, images, config, result, compute),
        mode="white",
        objective=config.objective,
        craft_asr=result.craft_success,
        loss_trace=result.loss_trace,
        gradient_passes=result.gradient_passes,
        diagnostics=about(subject, title, result.diagnostics),
        elapsed_s=search_s + time.perf_counter() - started,
    )
    return ScoredRun(record, result.delta)


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


def _most(subject: Subject, craft: Tensor, config: WhiteboxConfig) -> int:
    return most_together(subject.white.classifier, craft, config)


def _run_together(
    subject: Subject,
    attacks: Sequence[tuple[AttackImages, WhiteboxConfig]],
    inputs: Inputs,
    workshop: Workshop,
) -> Steps[tuple[tuple[ScoredRun, ...] | BdauditError, ...]]:
    found = yield from whitebox_runs(
        subject,
        attacks,
        compute=workshop.compute,
        store=workshop.store,
        innocent=inputs.innocent_other_than(subject),
    )
    return tuple(o if isinstance(o, BdauditError) else (o,) for o in found)


WHITE = AttackKind(
    config=WhiteboxConfig,
    configure=_configure,
    cost=_cost,
    run=_run,
    together=Together(most=_most, run=_run_together),
)
