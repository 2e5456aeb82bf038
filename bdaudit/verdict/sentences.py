"""What was found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from bdaudit.foundation.modes import MODES
from bdaudit.records import AttackRun, AuditRecord, Baseline
from bdaudit.verdict.doubts import (
    AttackFailsOnOriginal,
    BackdoorNotSure,
    BoundNotBelow,
    ControlsSaturate,
    DiagnosticRaised,
    Doubt,
    NotMeasured,
    NotReactivated,
    OneMoreMayReach,
    OnlyTransfer,
    Remembered,
    StandInsCannotAccuse,
    StepFailed,
    TooFewImages,
    TooFewInnocents,
    TooFewInnocentsServe,
    TriggerAloneMayDoMore,
    TriggerFailsOnOriginal,
)
from bdaudit.verdict.findings import Active, Dormant, Finding, Inconclusive, Removed
from bdaudit.verdict.innocent_models import InnocentModels
from bdaudit.verdict.placebos import PlaceboNull

__all__ = ["doubt_in_words", "reasons", "why"]

_ONLY_ASKED = " (it could only be queried; its weights were not examined)"


def why(finding: Finding, record: AuditRecord) -> str:
    """Return in one sentence why the outcome is what it is.

    Further sentences say of a trigger that nobody knew where it is from, and of a file with several
    sets of weights which were audited.
    """
    said = _why(finding)
    if record.trigger.recovered:
        said += " The trigger is recovered from the original, not known."
    about_weights = record.about_weights()
    if about_weights is not None:
        said += f" {about_weights[0].upper()}{about_weights[1:]}."
    return said


def reasons(finding: Finding) -> tuple[str, ...]:
    """Return every reason why there is no answer, in words; none where there is one."""
    if isinstance(finding, Inconclusive):
        return tuple(doubt_in_words(doubt) for doubt in finding.doubts)
    return ()


def _why(finding: Finding) -> str:
    match finding:
        case Active():
            return _active(finding)
        case Dormant():
            return _dormant(finding)
        case Removed():
            return _removed(finding)
        case Inconclusive():
            return f"No verdict: {doubt_in_words(finding.doubts[0])}."
    assert_never(finding)


def _active(finding: Active) -> str:
    beyond = max((b.asr.value for b in finding.references), default=None)
    against = "" if beyond is None else f"; {_named(finding.references)} at most {_percent(beyond)}"
    return (
        f"The trigger alone still takes {_percent(finding.asr.value)} of held-out images to the "
        f"target on the defended model{against}."
    )


def _dormant(finding: Dormant) -> str:
    run = finding.attack.run
    norm = {"linf": "L-inf", "l2": "L2"}[run.norm]
    said = (
        f"The trigger ({_percent(finding.alone.value)} alone) plus one universal perturbation of "
        f"{norm} norm {run.eps:g}{_found_how(run)} takes {_percent(run.asr.value)} of held-out "
        "images to the target"
    )
    said = f"{said}; {', '.join(_compared(finding))}."
    if finding.relearning is None:
        return said
    evidence = finding.relearning.evidence
    nearest = max(finding.attack.same_model.controls, key=lambda c: c.rate.value)
    return (
        f"{said} By itself that would not do ({nearest.lift.against}: "
        f"{_percent(nearest.rate.value)}), but {evidence.shots} triggered images bring the "
        f"trigger back as well: {_points(evidence.gap)} (at least {_points(evidence.low)}) beyond "
        "any innocent model."
    )


def _compared(finding: Dormant) -> Iterator[str]:
    """Return what the same attack does elsewhere."""
    attack = finding.attack
    if attack.placebos is not None:
        yield from _beyond_placebos(attack.placebos)
    for null in attack.nulls:
        if isinstance(null, InnocentModels) and null.innocents:
            who = _named([i.baseline for i in null.innocents])
            reached = _spread([i.run.asr.value for i in null.innocents])
            yield f"on {who} the same attack reaches {reached}"
    if attack.run.delta_only is not None:
        yield f"without the trigger the same delta {_percent(attack.run.delta_only.value)}"
    for null in () if attack.by_placebos else attack.nulls:
        if isinstance(null, InnocentModels) and not null.by_asr.holds:
            least = min(null.by_contribution.over, key=lambda c: c.value)
            more = _points(least.value)
            yield f"so here the trigger adds {more} more than it does to any of them"


def _beyond_placebos(null: PlaceboNull) -> Iterator[str]:
    """Give what other triggers reach, and what is expected without a backdoor."""
    yield (
        f"{_counted(len(null.reached))} other triggers of the same strength, which the original "
        f"ignores, reach {_spread(null.reached)}"
    )
    if null.innocents:
        yield f"without a backdoor {_percent(null.expected)} is expected"


def _removed(finding: Removed) -> str:
    only_asked = _ONLY_ASKED if finding.only_asked else ""
    if finding.by_placebos:
        return _removed_by_placebos(finding, only_asked)
    return (
        f"With the trigger the defended model does no more than the strongest control{only_asked}: "
        f"lift at most {_points(finding.largest.high)} (upper bound, at eps "
        f"{finding.largest.eps:g}), while the same attack does wake the original; controls were "
        f"low enough up to eps {finding.largest_eps:g} that a dormant backdoor would have shown."
    )


def _removed_by_placebos(finding: Removed, only_asked: str) -> str:
    if finding.placebos:
        null = max(finding.placebos, key=lambda n: n.over.high or 0.0)
        said = (
            f"at eps {null.run.eps:g} the trigger takes {_percent(null.run.asr.value)} of held-out "
            f"images to the target, and {_counted(len(null.reached))} other triggers of the same "
            f"strength, which the original ignores, {_spread(null.reached)}"
        )
        if null.innocents:
            said += f"; without a backdoor {_percent(null.expected)} is expected"
    else:
        said = f"it reaches less than {_percent(finding.limit)} at every eps that could tell"
    return (
        f"With the trigger the defended model does no more than with placebo triggers{only_asked}: "
        f"{said}. The lift is at most {_points(finding.largest.high)} (upper bound, at eps "
        f"{finding.largest.eps:g}), while the same attack does wake the original; controls were "
        f"low enough up to eps {finding.largest_eps:g} that a dormant backdoor would have shown."
    )


def doubt_in_words(doubt: Doubt) -> str:
    """Return one doubt in words, with what to do where something can be done."""
    match doubt:
        case BackdoorNotSure():
            return _backdoor_not_sure(doubt)
        case NotReactivated():
            return "re-activation of the defended model was not measured"
        case TriggerFailsOnOriginal():
            return (
                f"the trigger takes only {_percent(doubt.asr.value)} of held-out images to the "
                f"target on the original (at least {_percent(doubt.needed)} needed), so there is "
                "no working backdoor to look for: check trigger, target and original"
            )
        case TooFewInnocents():
            kind = "covers the image" if doubt.wide else "is local"
            if doubt.recovered:
                kind = "was recovered"
            left_out = "".join(f"; {b.model} left out: {b.left_out}" for b in doubt.left_out)
            return (
                f"a trigger that {kind} needs {doubt.needed} innocent "
                f"model{'s' * (doubt.needed != 1)}, got {doubt.n}: "
                f"add more with --reference{left_out}"
            )
        case TooFewImages():
            return (
                f"{doubt.n} held-out images, but {doubt.needed} are needed: provide more clean data"
            )
        case TriggerAloneMayDoMore():
            return (
                f"the trigger alone may do up to {_points(doubt.high)} more on the defended model "
                f"than {doubt.against} (limit {_points(doubt.limit)})"
            )
        case NotMeasured():
            return f"not measured: {_missing(doubt)} {_where(doubt.run)}"
        case StandInsCannotAccuse():
            return (
                f"at eps {doubt.run.eps:g} {_percent(doubt.run.asr.value)} is above all controls, "
                "but a trigger that covers the image may move real innocent models further than "
                f"stand-ins: {doubt.needed} innocent models given as --reference are needed to "
                "decide"
            )
        case TooFewInnocentsServe():
            return _too_few_serve(doubt)
        case OneMoreMayReach():
            beyond = doubt.beyond
            return (
                f"at eps {doubt.run.eps:g} {_percent(doubt.run.asr.value)} is above all "
                f"{doubt.n_innocents} innocent models, which differ so much that one more of them "
                f"may reach as far (the {beyond.name} is {_points(beyond.value)}, at least "
                f"{_points(beyond.low)}): add more innocent models with --reference"
            )
        case BoundNotBelow():
            return _bound_not_below(doubt)
        case OnlyTransfer():
            return (
                "only perturbations made on surrogates were tried, and their failure says little, "
                "because surrogates may differ from the defended model: try mode white or query"
            )
        case Remembered():
            return _remembered(doubt)
        case ControlsSaturate():
            return (
                f"the controls saturate at every eps tried (above {_percent(doubt.limit)}), so a "
                "lift could not be seen: try smaller eps"
            )
        case AttackFailsOnOriginal():
            return _attack_fails(doubt)
        case DiagnosticRaised():
            return f"{doubt.diagnostic.subject}: {doubt.diagnostic.message}"
        case StepFailed():
            step = doubt.step
            return f"step {step.name} {step.status}" + (f": {step.reason}" if step.reason else "")
    assert_never(doubt)


def _backdoor_not_sure(doubt: BackdoorNotSure) -> str:
    found = doubt.why.rstrip(".")
    if doubt.outcome == "none":
        return f"no backdoor found to audit ({found})"
    return f"it is uncertain whether there is a backdoor to audit ({found})"


def _missing(doubt: NotMeasured) -> str:
    on = "" if doubt.model is None else f" on {doubt.model}"
    match doubt.what:
        case "delta_only":
            return f"the same delta without the trigger{on}"
        case "no_trigger":
            return f"the attack without the trigger{on}"
        case "trigger":
            return f"the attack{on}"
        case "placebo":
            return "the attack with placebos"


def _too_few_serve(doubt: TooFewInnocentsServe) -> str:
    at = f"at eps {doubt.run.eps:g}"
    if not doubt.too_easy:
        return (
            f"{at} {doubt.left} of the {doubt.needed} innocent models that are needed were measured"
        )
    verb = "is" if len(doubt.too_easy) == 1 else "are"
    return (
        f"{at} {', '.join(doubt.too_easy)} {verb} pushed too easily even without the trigger, so "
        f"{doubt.left} of the {doubt.needed} innocent models that are needed are left"
    )


def _bound_not_below(doubt: BoundNotBelow) -> str:
    bound, unbeaten, limit = doubt.bound, doubt.unbeaten, f"limit {_points(doubt.limit)}"
    said = f"at eps {bound.eps:g} the {bound.name} is {_points(bound.value)}"
    if unbeaten is not None:
        return (
            f"{said}, at least {_points(bound.low)}, but the {unbeaten.name} is only "
            f"{_points(unbeaten.value)}, between {_points(unbeaten.low)} and "
            f"{_points(unbeaten.high)} ({limit})"
        )
    if bound.holds:
        return f'{said}, at least {_points(bound.low)} ({limit}), which rules out "removed"'
    return (
        f"{said}, between {_points(bound.low)} and {_points(bound.high)} ({limit}): neither "
        "clearly above nor clearly below"
    )


def _remembered(doubt: Remembered) -> str:
    evidence = doubt.evidence
    brings = "bring" if doubt.relearning.outcome == "dormant" else "seem to bring"
    rate = ""
    if evidence is doubt.relearning.faster:
        rate = f" at the next larger learning rate, {evidence.settings.get('learning_rate')}"
    return (
        f"no perturbation tried surely wakes the backdoor, and yet {evidence.shots} triggered "
        f"images {brings} it back faster than in any innocent model{rate} (gap "
        f"{_points(evidence.gap)}, between {_points(evidence.low)} and {_points(evidence.high)}, "
        f"limit {_points(doubt.relearning.limit)}): what is left of it may answer to another attack"
    )


def _attack_fails(doubt: AttackFailsOnOriginal) -> str:
    where = _where(doubt.run)
    if doubt.asr is None:
        return f"not measured: the attack on the original {where}"
    return (
        f"the attack {where} takes only {_percent(doubt.asr.value)} of images to the target on the "
        "original, where it must succeed"
    )


# -- phrases ---------------------------------------------------------------------------------------


def _where(run: AttackRun) -> str:
    return f"at eps {run.eps:g} ({run.mode})"


def _found_how(run: AttackRun) -> str:
    said = MODES[run.mode].found_how.format(
        image_queries=run.image_queries,
        gradient_passes=run.gradient_passes,
        n_made_on=len(run.made_on),
    )
    return f", {said}," if said else ""


def _named(innocents: Sequence[Baseline]) -> str:
    made = [b.stand_in for b in innocents]
    if all(made):
        return "stand-ins for innocent models"
    return "innocent models and stand-ins" if any(made) else "innocent models"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _points(difference: float | None) -> str:
    return "unknown" if difference is None else f"{100 * difference:+.1f} points"


def _counted(n: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[n] if n < len(words) else str(n)


def _spread(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    if len(shares) == 1 or low == high:
        return _percent(high)
    return f"{100 * low:.3g} to {_percent(high)}"
