"""Stand-ins for innocent models as a step of an audit: made, measured, and left out if unfit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bdaudit.auditing.inputs import Inputs
from bdaudit.auditing.runs import Compute, derive_generator
from bdaudit.errors import ModelError, NumericsError
from bdaudit.models import LoadedModel
from bdaudit.progress import Steps
from bdaudit.results import Baseline, Diagnostic
from bdaudit.standins import StandInConfig, make_stand_ins
from bdaudit.verdict import Policy

__all__ = ["N_INNOCENT", "assess_stand_ins", "stand_in_cost", "stand_in_steps"]

N_INNOCENT = 3
"""Innocent models an audit wants: stand-ins are made where fewer are given."""


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
    try:
        models = yield from make_stand_ins(
            _teacher(inputs),
            inputs.craft,
            count=count,
            config=config,
            generator=derive_generator(compute.seed, "stand-ins"),
            cache_dir=cache_dir,
        )
    except (ModelError, NumericsError) as error:
        return inputs, Diagnostic(
            code="no_stand_ins",
            severity="warning",
            subject="stand-ins",
            message=f"no innocent model could be made to stand in: {error}; pass --reference",
        )
    return inputs.with_stand_ins(models), None


def stand_in_cost(count: int, config: StandInConfig) -> float:
    """Return what making them costs, in images forwarded: teacher, student, and back."""
    return 4.0 * count * config.n_images


def _teacher(inputs: Inputs) -> LoadedModel:
    (defended,) = inputs.with_role("defended")
    if defended.model is not None:
        return defended.model
    (original,) = inputs.with_role("original")
    return original.white


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
        reason = _unfit(baseline, defended, policy) if baseline.stand_in else None
        if reason is not None:
            baseline = baseline.model_copy(update={"left_out": reason})
            diagnostics.append(
                Diagnostic(
                    code="stand_in_left_out",
                    severity="warning",
                    subject=baseline.model,
                    message=f"{reason}, so it does not stand for an innocent model and is left "
                    "out; more clean images help, or pass --reference",
                )
            )
        assessed.append(baseline)
    return tuple(assessed), diagnostics


def _unfit(stand_in: Baseline, defended: Baseline, policy: Policy) -> str | None:
    loss = defended.clean_acc.value - stand_in.clean_acc.value
    if loss > policy.max_stand_in_acc_loss:
        return (
            f"its clean accuracy, {stand_in.clean_acc.value:.1%}, is {100 * loss:.1f} points below "
            f"the defended model's (limit {100 * policy.max_stand_in_acc_loss:.3g})"
        )
    moved = stand_in.asr.value - stand_in.clean_target_rate.value
    if moved > policy.max_stand_in_asr:
        return (
            f"the trigger alone takes {stand_in.asr.value:.1%} of images to the target on it, "
            f"{100 * moved:.1f} points more than no trigger (limit "
            f"{100 * policy.max_stand_in_asr:.3g})"
        )
    return None
