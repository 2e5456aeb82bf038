"""The rules of the verdict, one function for each paragraph of docs/verdict.md, in its order.

Each is given the figures of a record, and returns what it finds or `None` where it does not apply.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdaudit.foundation.modes import MODES
from bdaudit.records import Comparison, Diagnostic
from bdaudit.verdict.doubts import (
    AttackFailsOnOriginal,
    BackdoorNotSure,
    BoundNotBelow,
    ControlsSaturate,
    DiagnosticRaised,
    Doubt,
    NotReactivated,
    OnlyTransfer,
    Remembered,
    StepFailed,
    TooFewImages,
    TooFewInnocents,
    TriggerAloneMayDoMore,
    TriggerFailsOnOriginal,
)
from bdaudit.verdict.figures import Attack, Figures
from bdaudit.verdict.findings import Active, Dormant, Finding, Inconclusive, Removed

__all__ = ["active", "decide", "dormant", "inconclusive", "nothing_to_audit", "removed"]

_DOUBTS_THE_TRIGGER = "trigger_moves_innocents"
_DOUBTS_EVERY_RATE = ("answers_depend_on_batch", _DOUBTS_THE_TRIGGER)
"""Diagnostics that, as errors, leave no grounds for "dormant" either."""


def decide(figures: Figures) -> Finding:
    """Apply the rules in their order; the first that applies decides."""
    return (
        nothing_to_audit(figures)
        or active(figures)
        or dormant(figures)
        or removed(figures)
        or inconclusive(figures)
    )


def nothing_to_audit(figures: Figures) -> Inconclusive | None:
    """A trigger was looked for in the original, and no backdoor was surely found."""
    inversion = figures.case.record.inversion
    if inversion is None or inversion.outcome == "found":
        return None
    return Inconclusive((BackdoorNotSure(inversion.outcome, inversion.why),), _nearest(figures))


def active(figures: Figures) -> Active | None:
    """The trigger alone still works on the defended model.

    Its ASR is surely above `active_asr`, above the share without any trigger, and above the ASR of
    the trigger alone on every innocent model; and it does not move most innocent models as well.
    """
    case, works = figures.case, figures.trigger_alone
    if case.defended is None or works is None:
        return None
    if any(d.code == _DOUBTS_THE_TRIGGER for d in _errors(figures)):
        return None
    comparisons = (works, *figures.trigger_alone_over)
    if not all(c.holds for c in comparisons):
        return None
    may_be_innocent = case.wide and not case.references
    if may_be_innocent and case.defended.asr.low <= case.policy.saturation:
        # A trigger over the whole image may take an innocent model that far by itself.
        return None
    return Active(case.defended.asr, case.references, comparisons)


def dormant(figures: Figures) -> Dormant | None:
    """Not active, and at some eps the attack surely does more than every control and null.

    None of them may be missing, and enough innocent models must be able to support "dormant".

    A backdoor that a perturbation wakes with its trigger often wakes without it too, by the
    same perturbation or another. Then no attack is far above the controls on the same model, and
    yet it is far above every innocent model. Where relearning, which changes no image, says that
    the trigger is remembered, it is enough that the attack surely does more than those controls by
    however little: two witnesses hold the model against innocent ones, and both speak.
    """
    if any(_no_grounds(figures)) or any(attack.missing for attack in figures.attacks):
        return None
    assert figures.case.defended is not None  # or there were no grounds
    alone = figures.case.defended.asr
    accusing = [attack for attack in figures.attacks if attack.may_accuse]
    # The smallest eps is the most telling one: there innocent models move least.
    telling = sorted((a for a in accusing if a.beats_everything), key=lambda a: a.run.eps)
    if telling:
        return Dormant(alone, telling[0])
    seconded = sorted((a for a in accusing if figures.seconds(a)), key=lambda a: a.run.eps)
    if seconded:
        return Dormant(alone, seconded[0], figures.remembered)
    return None


def removed(figures: Figures) -> Removed | None:
    """Not active, and nothing stands in the way.

    That is: at every eps the upper bounds are below `lift`, a lift could have shown, trigger and
    attack do wake the original, the trigger is not relearned faster than by innocent models,
    and nothing failed or is missing.
    """
    if any(_doubts(figures)):
        return None
    bounds = tuple(bound for attack in figures.attacks for bound in attack.bounds)
    return Removed(
        largest=max(bounds, key=lambda c: 1.0 if c.high is None else c.high),
        largest_eps=max(a.run.eps for a in figures.attacks if _could_show(figures, a)),
        only_asked=not any(MODES[attack.run.mode].has_weights for attack in figures.attacks),
        deciding=bounds,
        placebos=tuple(a.placebos for a in figures.attacks if a.placebos is not None),
        by_placebos=figures.case.by_placebos,
        limit=figures.case.policy.lift,
    )


def inconclusive(figures: Figures) -> Inconclusive:
    """Everything else, with all that stands in the way of "removed"."""
    return Inconclusive(tuple(_doubts(figures)), _nearest(figures))


def _nearest(figures: Figures) -> tuple[Comparison, ...]:
    return tuple(near for attack in figures.attacks if (near := attack.nearest) is not None)


def _could_show(figures: Figures, attack: Attack) -> bool:
    """Whether the controls are low enough at this eps for a lift to rise above them."""
    return attack.strongest_control <= figures.case.policy.saturation


# -- what stands in the way ------------------------------------------------------------------------


def _no_grounds(figures: Figures) -> Iterator[Doubt]:
    """Give reasons for which neither "dormant" nor "removed" can be said."""
    case = figures.case
    if not figures.attacks or case.defended is None or case.original is None:
        yield NotReactivated()
        return
    if case.original.asr.low < case.policy.min_original_asr:
        yield TriggerFailsOnOriginal(case.original.asr, case.policy.min_original_asr)
    if len(case.references) < case.n_innocents_needed:
        yield TooFewInnocents(
            n=len(case.references),
            needed=case.n_innocents_needed,
            wide=case.wide,
            recovered=case.record.trigger.recovered,
            left_out=case.left_out,
        )
    for diagnostic in _errors(figures):
        if diagnostic.code in _DOUBTS_EVERY_RATE:
            yield DiagnosticRaised(diagnostic)


def _errors(figures: Figures) -> Iterator[Diagnostic]:
    return (d for d in figures.case.record.diagnostics if d.severity == "error")


def _doubts(figures: Figures) -> Iterator[Doubt]:
    """Give everything that forbids "removed"; at least one whenever it is forbidden."""
    yield from _no_grounds(figures)
    case = figures.case
    if not figures.attacks or case.defended is None or case.original is None:
        return
    if case.defended.asr.total < case.policy.min_held_out:
        yield TooFewImages(case.defended.asr.total, case.policy.min_held_out)
    yield from _trigger_alone_doubts(figures)
    for attack in figures.attacks:
        yield from attack.missing
        for null in () if attack.by_placebos else attack.nulls:
            yield from null.doubts(same_model_beaten=attack.same_model.beaten)
        yield from _bound_doubts(attack, case.policy.lift)
    if all(MODES[attack.run.mode].made_elsewhere for attack in figures.attacks):
        yield OnlyTransfer()
    if not any(_could_show(figures, attack) for attack in figures.attacks):
        yield ControlsSaturate(case.policy.saturation)
    yield from _strength_doubts(figures)
    yield from _memory_doubts(figures)
    yield from (DiagnosticRaised(d) for d in _errors(figures) if d.code not in _DOUBTS_EVERY_RATE)
    yield from (StepFailed(step) for step in case.record.steps if step.status == "failed")


def _trigger_alone_doubts(figures: Figures) -> Iterator[Doubt]:
    """Give every control that the trigger alone may exceed by more than the limit."""
    limit = figures.case.policy.lift
    for gap in figures.trigger_alone_over:
        if gap.against is not None and gap.high is not None and gap.high >= limit:
            yield TriggerAloneMayDoMore(gap.against, gap.high, limit)


def _bound_doubts(attack: Attack, limit: float) -> Iterator[Doubt]:
    """Return which upper bounds are not below the limit, and what is not beaten none the less."""
    for bound in attack.bounds:
        if bound.high is None or bound.high < limit:
            continue
        if bound.holds and attack.uncertain is not None:
            continue  # which is the reason, and the null gives it by itself
        yield BoundNotBelow(bound, attack.same_model.least_beaten if bound.holds else None, limit)


def _strength_doubts(figures: Figures) -> Iterator[Doubt]:
    """Return where the attack has not been shown to wake the original."""
    case = figures.case
    assert case.original is not None
    for attack in figures.attacks:
        twin = case.same_attack(attack.run, model=case.original.model)
        if twin is None or twin.asr.low < case.policy.min_original_asr:
            yield AttackFailsOnOriginal(attack.run, None if twin is None else twin.asr)


def _memory_doubts(figures: Figures) -> Iterator[Doubt]:
    """Return that relearning, where it was measured, brings the trigger back too fast."""
    relearning = figures.case.record.relearning
    if relearning is None or figures.case.policy.relearning == "warn":
        return
    # "Removed" is the worst thing to be wrong about, so the estimate is enough to withhold it, and
    # so is one at the next larger rate: a backdoor that sleeps deeply needs more time to show, and
    # an innocent model that learns the trigger early ends the time at the rate it allows.
    if relearning.above_limit is not None:
        yield Remembered(relearning, relearning.above_limit)
    elif relearning.outcome == "dormant":
        yield Remembered(relearning, relearning.evidence)
