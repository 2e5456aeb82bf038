"""Stand-ins for innocent models as a step of an audit: made, measured, and left out if unfit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bdaudit.auditing.baselines import (
    check_baselines,
    check_inputs,
    demand_matching_labels,
    measure_baselines,
)
from bdaudit.auditing.inputs import Inputs, Subject
from bdaudit.auditing.runs import Compute, derive_generator
from bdaudit.data import Sample
from bdaudit.errors import ModelError, NumericsError
from bdaudit.models import LoadedModel
from bdaudit.progress import Steps
from bdaudit.results import Baseline, Diagnostic, Rate
from bdaudit.standins import StandInConfig, make_stand_ins
from bdaudit.verdict import Policy

__all__ = [
    "N_INNOCENT",
    "MadeStandIns",
    "PreparedModels",
    "assess_stand_ins",
    "lacks_accuracy",
    "left_out_diagnostic",
    "looks_moved",
    "make_models",
    "n_missing",
    "prepare_models",
    "stand_in_cost",
    "stand_in_steps",
]

N_INNOCENT = 3
"""Innocent models an audit wants: stand-ins are made where fewer are given."""


@dataclass(frozen=True)
class MadeStandIns:
    """What became of the wish for stand-ins.

    Attributes:
        models: Those that were made, good enough or not.
        failure: Why there are none.
    """

    models: tuple[LoadedModel, ...] = ()
    failure: Diagnostic | None = None


def n_missing(subjects: Sequence[Subject], wanted: int | None) -> int:
    """Return how many stand-ins to make: `wanted`, or what the references lack to three."""
    if wanted is not None:
        return wanted
    given = [s for s in subjects if s.role == "reference" and not s.stand_in]
    return max(N_INNOCENT - len(given), 0)


def make_models(
    teacher: LoadedModel,
    craft: Sample,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None = None,
) -> Steps[MadeStandIns]:
    """Make stand-ins of the teacher's architecture from clean craft images."""
    config = replace(config, autocast=compute.autocast or config.autocast)
    try:
        models = yield from make_stand_ins(
            teacher,
            craft,
            count=count,
            config=config,
            generator=derive_generator(compute.seed, "stand-ins"),
            cache_dir=cache_dir,
        )
    except (ModelError, NumericsError) as error:
        return MadeStandIns(
            failure=Diagnostic(
                code="no_stand_ins",
                severity="warning",
                subject="stand-ins",
                message=f"no innocent model could be made to stand in: {error}; pass --reference",
            )
        )
    return MadeStandIns(models)


def stand_in_steps(
    inputs: Inputs,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None = None,
) -> Steps[tuple[Inputs, Diagnostic | None]]:
    """Make stand-ins and put them among the references.

    The defended model teaches them. Where it can only be asked the original does, which costs no
    query: neither sees anything but clean craft images.

    Returns:
        The inputs with the stand-ins, and, where none could be made, why.
    """
    made = yield from make_models(
        _teacher(inputs), inputs.craft, compute, count=count, config=config, cache_dir=cache_dir
    )
    return inputs.with_stand_ins(made.models), made.failure


@dataclass(frozen=True)
class PreparedModels:
    """Models with their stand-ins, scored without any perturbation.

    Attributes:
        inputs: With the stand-ins; those that are unfit play no part.
        baselines: One a model.
        diagnostics: What inputs, stand-ins and baselines give reason to doubt.
    """

    inputs: Inputs
    baselines: tuple[Baseline, ...]
    diagnostics: tuple[Diagnostic, ...]


def prepare_models(
    inputs: Inputs,
    compute: Compute,
    *,
    count: int,
    config: StandInConfig,
    cache_dir: Path | None,
) -> Steps[PreparedModels]:
    """Make `count` stand-ins, score every model, and leave out the stand-ins that are unfit.

    For verbs that judge nothing; the limits are the default policy's.

    Raises:
        DataError: The labels are not the classes of the model that teaches the stand-ins.
    """
    policy = Policy()
    failure: Diagnostic | None = None
    if _teacher_subject(inputs).model is not None:
        demand_matching_labels(_teacher_subject(inputs), inputs.craft, compute)
    if count:
        inputs, failure = yield from stand_in_steps(
            inputs, compute, count=count, config=config, cache_dir=cache_dir
        )
    measured = yield from measure_baselines(inputs, compute)
    baselines, unfit = assess_stand_ins(measured, policy)
    inputs = replace(inputs, left_out=frozenset(b.model for b in baselines if b.left_out))
    lost = check_baselines(
        baselines,
        inputs.num_classes,
        max_clean_acc_loss=policy.max_clean_acc_loss,
        class_names=inputs.held_out.class_names,
    )
    made = [failure] if failure else []
    diagnostics = (*check_inputs(inputs), *made, *unfit, *lost)
    return PreparedModels(inputs, baselines, diagnostics)


def stand_in_cost(count: int, config: StandInConfig) -> float:
    """Return what making them costs, in images forwarded: teacher, student, and back."""
    return 4.0 * count * config.n_images


def _teacher(inputs: Inputs) -> LoadedModel:
    return _teacher_subject(inputs).white


def _teacher_subject(inputs: Inputs) -> Subject:
    (defended,) = inputs.with_role("defended")
    if defended.model is not None:
        return defended
    return next(iter(inputs.with_role("original")), defended)


def assess_stand_ins(
    baselines: Sequence[Baseline], policy: Policy
) -> tuple[tuple[Baseline, ...], list[Diagnostic]]:
    """Say which stand-ins are not good enough to be held against the defended model.

    Returns:
        The baselines, those of unfit stand-ins marked as left out, and a diagnostic for each.
    """
    defended = next(b for b in baselines if b.role == "defended")
    assessed: list[Baseline] = []
    diagnostics: list[Diagnostic] = []
    for baseline in baselines:
        reason = None
        if baseline.stand_in:
            loss = defended.clean_acc.value - baseline.clean_acc.value
            reason = lacks_accuracy(
                baseline.clean_acc.value, loss, "the defended model's", policy.max_stand_in_acc_loss
            ) or looks_moved(baseline.asr, baseline.clean_target_rate, policy)
        if reason is not None:
            baseline = baseline.model_copy(update={"left_out": reason})
            diagnostics.append(left_out_diagnostic(baseline.model, reason))
        assessed.append(baseline)
    return tuple(assessed), diagnostics


def left_out_diagnostic(name: str, reason: str) -> Diagnostic:
    """Say that a stand-in plays no part, and why."""
    return Diagnostic(
        code="stand_in_left_out",
        severity="warning",
        subject=name,
        message=f"{reason}, so it does not stand for an innocent model and is left out; more clean "
        "images help, or pass --reference",
    )


def lacks_accuracy(stand_in: float, loss: float, whose: str, limit: float) -> str | None:
    """Say why a stand-in's clean accuracy is too low; `None` where it is not.

    Args:
        stand_in: Its clean accuracy on held-out images.
        loss: By how much that is below another model's.
        whose: That model, as a possessive.
        limit: Of the loss.
    """
    if loss <= limit:
        return None
    return (
        f"its clean accuracy, {stand_in:.1%}, is {100 * loss:.1f} points below {whose} (limit "
        f"{100 * limit:.3g})"
    )


def looks_moved(asr: Rate, clean_target_rate: Rate, policy: Policy) -> str | None:
    """Say why the trigger alone moves a stand-in too much; `None` where it does not."""
    moved = asr.value - clean_target_rate.value
    if moved <= policy.max_stand_in_asr:
        return None
    return (
        f"the trigger alone takes {asr.value:.1%} of images to the target on it, "
        f"{100 * moved:.1f} points more than no trigger (limit {100 * policy.max_stand_in_asr:.3g})"
    )
