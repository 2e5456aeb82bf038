"""Which models may stand for innocent ones, given or made, and why others are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bdaudit.records import Baseline, Diagnostic, Rate
from bdaudit.verdict import Policy

__all__ = [
    "assess_innocents",
    "lacks_accuracy",
    "left_out_diagnostic",
    "looks_moved",
    "trigger_moves_innocents",
]


def assess_innocents(
    baselines: Sequence[Baseline], policy: Policy, *, unfit: Mapping[str, str], wide: bool
) -> tuple[tuple[Baseline, ...], list[Diagnostic]]:
    """Return which innocent models are not good enough to be held against the defended one.

    Args:
        baselines: One a model; what is left out already stays so.
        policy: The limits.
        unfit: Why some are left out whatever they do, by name.
        wide: Whether the trigger covers the image. Then it may move a true innocent model by
            itself, so a given one is left out only above `max_reference_asr_wide`.

    Returns:
        The baselines, unfit ones marked as left out, and a diagnostic for each that was marked.
    """
    defended = next(b for b in baselines if b.role == "defended")
    assessed: list[Baseline] = []
    diagnostics: list[Diagnostic] = []
    for baseline in baselines:
        if baseline.role == "reference" and baseline.left_out is None:
            loss = defended.clean_acc.value - baseline.clean_acc.value
            reason = (
                unfit.get(baseline.model)
                or lacks_accuracy(
                    baseline.clean_acc.value,
                    loss,
                    "the defended model's",
                    policy.max_stand_in_acc_loss,
                )
                or looks_moved(
                    baseline.asr, baseline.clean_target_rate, _most_moved(baseline, policy, wide)
                )
            )
            if reason is not None:
                baseline = baseline.model_copy(update={"left_out": reason})
                diagnostics.append(
                    left_out_diagnostic(baseline.model, reason, stand_in=baseline.stand_in)
                )
        assessed.append(baseline)
    return tuple(assessed), diagnostics


def _most_moved(baseline: Baseline, policy: Policy, wide: bool) -> float:
    if wide and not baseline.stand_in:
        return max(policy.max_reference_asr_wide, policy.max_stand_in_asr)
    return policy.max_stand_in_asr


def trigger_moves_innocents(
    baselines: Sequence[Baseline], policy: Policy, *, wide: bool
) -> Iterable[Diagnostic]:
    """Doubt the trigger where it moves as many innocent models as it leaves alone.

    One that is moved may have a backdoor of its own. Of many it is the likelier that the trigger is
    a feature of its target class, which no defence should take away.
    """
    innocents = [b for b in baselines if b.role == "reference"]
    moved = [
        b
        for b in innocents
        if b.left_out is not None
        and looks_moved(b.asr, b.clean_target_rate, _most_moved(b, policy, wide)) == b.left_out
    ]
    serving = [b for b in innocents if b.left_out is None]
    if moved and len(moved) >= len(serving):
        names = ", ".join(b.model for b in moved)
        yield Diagnostic(
            code="trigger_moves_innocents",
            severity="error",
            subject=names,
            message=f"the trigger alone moves {len(moved)} of "
            f"{len(moved) + len(serving)} innocent models that could serve ({names}): they are "
            "not innocent, or the trigger is no trigger but a feature of the class; check trigger "
            "and target, or pass other --reference",
        )


def left_out_diagnostic(name: str, reason: str, *, stand_in: bool) -> Diagnostic:
    """Return the diagnostic of a model that is left out, with the reason."""
    if stand_in:
        advice = "more clean images help, or pass --reference"
    else:
        advice = "pass another --reference"
    return Diagnostic(
        code="stand_in_left_out" if stand_in else "reference_left_out",
        severity="warning",
        subject=name,
        message=f"{reason}; so it is not used as an innocent model; {advice}",
    )


def lacks_accuracy(accuracy: float, loss: float, whose: str, limit: float) -> str | None:
    """Return why a model's clean accuracy is too low; `None` where it is not.

    Args:
        accuracy: Its clean accuracy on held-out images.
        loss: By how much that is below another model's.
        whose: That model, as a possessive.
        limit: Of the loss.
    """
    if loss <= limit:
        return None
    return (
        f"its clean accuracy, {accuracy:.1%}, is {100 * loss:.1f} points below {whose} (limit "
        f"{100 * limit:.3g})"
    )


def looks_moved(asr: Rate, clean_target_rate: Rate, limit: float) -> str | None:
    """Return why the trigger alone moves a model too much; `None` where it does not."""
    moved = asr.value - clean_target_rate.value
    if moved <= limit:
        return None
    return (
        f"the trigger alone takes {asr.value:.1%} of images to the target on it, "
        f"{100 * moved:.1f} points more than no trigger (limit {100 * limit:.3g})"
    )
