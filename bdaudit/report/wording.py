"""The words and number formats that all reports share."""

from __future__ import annotations

from collections.abc import Sequence

from bdaudit.foundation.modes import MODES
from bdaudit.records import (
    AnyDocument,
    AttackRun,
    AuditRecord,
    BackdoorDirection,
    Baseline,
    Comparison,
    Heading,
    InversionRecord,
    LossBarrier,
    Mode,
    Outcome,
    Rate,
    ReactivationRecord,
    RelearningEvidence,
    RelearnRecord,
    ScoreRecord,
    ScreenRecord,
    Verdict,
)

__all__ = [
    "CONDITIONS",
    "SAME_DELTA",
    "SAME_IMAGES",
    "AnyRecord",
    "about_innocents",
    "at_the_next_rate",
    "attack_name",
    "barrier_in_words",
    "defended_file",
    "direction_in_words",
    "find_decisive",
    "gap_with_interval",
    "gist_of",
    "norm_name",
    "not_proved",
    "number",
    "one_line",
    "points",
    "precision_in_words",
    "share",
    "share_with_interval",
    "telling_eps",
    "tone_of",
    "weakest_lifts",
    "weights_of",
]

AnyRecord = AuditRecord | ScoreRecord | ReactivationRecord | RelearnRecord

_GISTS: dict[Outcome, str] = {
    "removed": "no sign of a dormant backdoor in this model",
    "dormant": "the backdoor is asleep, not gone",
    "active": "the backdoor still works as it is",
    "inconclusive": "this audit cannot tell",
}
_GISTS_WANTED: dict[Outcome, str] = {
    "removed": "the wanted trigger is gone",
    "dormant": "the wanted trigger is asleep",
    "active": "the wanted trigger works",
    "inconclusive": "this audit cannot tell",
}
_TONES_WANTED: dict[Outcome, Outcome] = {"active": "removed", "removed": "active"}

CONDITIONS = {
    "no_trigger": "attack without trigger",
    "wrong_target": "toward another class",
    "noise": "random noise",
}
"""The controls on the defended model that are attacks of their own."""

SAME_DELTA = "same delta, no trigger"
SAME_IMAGES = "same images, no trigger"

_NOT_PROVED = (
    "other triggers and other target classes: only the trigger given here was tried",
    "stronger attackers: larger budgets, other searches, perturbations that are not universal",
    "backdoors introduced after the defence, or by it",
)
_RECOVERED = (
    "the attacker's own trigger: the one tried was recovered from the original, not known, and "
    "may be another way into the same class"
)


def gist_of(verdict: Verdict) -> str:
    """Return a verdict in a few words; of a trigger that is wanted what became of it."""
    return (_GISTS_WANTED if verdict.wanted else _GISTS)[verdict.outcome]


def tone_of(verdict: Verdict) -> Outcome:
    """Return the outcome whose colour and sign a verdict has: where "active" is hoped for, good."""
    return (
        _TONES_WANTED.get(verdict.outcome, verdict.outcome) if verdict.wanted else verdict.outcome
    )


def not_proved(record: AuditRecord) -> list[str]:
    """Return what even a pass leaves open."""
    modes = {run.mode for run in record.runs if run.condition == "trigger"}
    lines = list(_NOT_PROVED)
    if record.trigger.recovered:
        lines[0] = lines[0].replace("given", "recovered")
        lines.insert(0, _RECOVERED)
    if any(MODES[mode].has_weights for mode in modes):
        return lines
    how = (
        "a black-box model to this audit (predictions only)"
        if any(MODES[mode].asks for mode in modes)
        else "neither examined nor queried"
    )
    return [f"an attacker who holds the weights: the model was {how}", *lines]


def attack_name(run: AttackRun) -> str:
    """Name the kind of attack `run` is, in words."""
    what = MODES[run.mode].label
    return f"{what}, specific objective" if run.objective == "specific" else what


def norm_name(norm: str) -> str:
    """Name a norm as people write it."""
    return {"linf": "L-inf", "l2": "L2"}[norm]


def share(rate: Rate | None) -> str:
    """Write a rate in per cent, `-` where it was not measured."""
    return "-" if rate is None else f"{100 * rate.value:.1f}%"


def share_with_interval(rate: Rate) -> str:
    """Write a rate in per cent with its 95 % interval."""
    return f"{100 * rate.value:.1f}% ({100 * rate.low:.1f}-{100 * rate.high:.1f})"


def points(difference: float | None) -> str:
    """Write a difference of shares in points, with its sign."""
    return "-" if difference is None else f"{100 * difference:+.1f}"


def gap_with_interval(evidence: RelearningEvidence) -> str:
    """Write a gap of relearning in points, with its interval."""
    return f"{points(evidence.gap)} points ({points(evidence.low)} to {points(evidence.high)})"


def at_the_next_rate(faster: RelearningEvidence) -> str:
    """Write the gap at the next larger learning rate."""
    rate = faster.settings.get("learning_rate")
    return f"At the next larger learning rate, {rate}: {gap_with_interval(faster)}."


def number(value: float | None) -> str:
    """Write a coefficient, `-` where it is undefined."""
    return "-" if value is None else f"{value:.2f}"


def barrier_in_words(barrier: LossBarrier) -> str:
    """Say what lies on the line of weights from the original to the defended model."""
    asr = " ".join(f"{100 * point.asr.value:.0f}%" for point in barrier.points)
    return (
        f"clean loss rises by {barrier.loss:.2f} and error by {100 * barrier.error:.1f} points "
        f"above the ends'; the trigger alone, from the original to the defended model: {asr}"
    )


def direction_in_words(direction: BackdoorDirection) -> str:
    """Say how much of a transformer's backdoor direction is left."""
    text = (
        f"mean cosine with the original's {direction.cosine:.2f} (its own on two halves of the "
        f"images {direction.halves:.2f}"
    )
    if direction.innocent is not None:
        text += f", the nearest innocent model's {direction.innocent:.2f}"
    return f"{text}); the trigger moves it {direction.strength:.0%} as far along it"


def precision_in_words(baseline: Baseline) -> str:
    """Return a detector's mean average precision at an overlap of .5; "-" where none is known."""
    return "-" if baseline.detection is None else f"{100 * baseline.detection.ap50:.1f}%"


def about_innocents(baselines: Sequence[Baseline]) -> str | None:
    """Return what stand-ins are and which innocent models were left out; `None` without either."""
    said = []
    if any(baseline.stand_in for baseline in baselines):
        said.append(
            "stand-in: a substitute innocent model, made from clean images since too few were "
            "given as --reference, and used only if it passes checks"
        )
    left_out = [b.model for b in baselines if b.left_out is not None]
    if left_out:
        said.append(f"left out: {', '.join(left_out)}")
    return "; ".join(said) or None


def one_line(record: AnyDocument) -> str:
    """Return what `record` found in one line of plain text."""
    if isinstance(record, AuditRecord):
        verdict = record.verdict
        return "no verdict" if verdict is None else f"{verdict.outcome}: {verdict.why}"
    if isinstance(record, ScoreRecord):
        values = ", ".join(f"{number(b.value)} against {b.reference}" for b in record.bec)
        return f"BEC {values}" if values else "BEC undefined: no reference"
    if isinstance(record, RelearnRecord):
        return f"{record.relearning.outcome}: {record.relearning.why}"
    if isinstance(record, InversionRecord):
        return f"{record.inversion.outcome}: {record.inversion.why}"
    if isinstance(record, ScreenRecord):
        return f"{record.screening.outcome}: {record.screening.why}"
    run = next(r for r in record.runs if r.role == "defended" and r.condition == "trigger")
    alone = next(b for b in record.baselines if b.role == "defended")
    return (
        f"ASR {share(run.asr)} with a {run.norm} perturbation of eps {run.eps:g}, "
        f"{share(alone.asr)} without; the same perturbation without the trigger "
        f"{share(run.delta_only)}"
    )


def weakest_lifts(record: AuditRecord, mode: str) -> dict[float, Comparison]:
    """Return, for each eps of the attacks of one mode, the lift over the strongest control.

    Of an innocent model that is the larger of the lift and of what the trigger's contribution is
    beyond that model's, since one of them is enough.
    """
    found: dict[float, Comparison] = {}
    for lift in () if record.verdict is None else record.verdict.over_controls(mode):
        if lift.eps is not None and (lift.eps not in found or lift.value < found[lift.eps].value):
            found[lift.eps] = lift
    return found


def telling_eps(record: AuditRecord, mode: Mode) -> set[float]:
    """Return every eps at which the attacks of one mode rise above all controls by the limit."""
    return set() if record.verdict is None else set(record.verdict.telling_eps.get(mode, ()))


def find_decisive(record: AuditRecord) -> tuple[AttackRun, Comparison] | None:
    """Return the attack to look at first, with its lift over the strongest control.

    Of a dormant model the one that decided; otherwise the one that came closest to the limit.
    """
    runs = record.runs_of(role="defended", condition="trigger")
    candidates = [
        (run, lift)
        for run in runs
        if (lift := weakest_lifts(record, run.mode).get(run.eps)) is not None
    ]
    verdict = record.verdict
    if verdict is not None and verdict.outcome == "dormant":
        decided = {(c.kind, c.eps) for c in verdict.deciding}
        candidates = [c for c in candidates if (c[1].kind, c[1].eps) in decided] or candidates
    return max(candidates, key=lambda c: c[1].value, default=None)


def defended_file(record: AnyRecord) -> str:
    """Name the release candidate by its file, or else as the record calls it."""
    defended = next((m for m in record.models if m.role == "defended"), None)
    if defended is None:
        return "defended"
    return defended.path or defended.name


def weights_of(record: Heading) -> str:
    """Name the models with the beginnings of their weights' digests."""
    models = (
        f"{m.name} {m.weights_sha256[:12] if m.weights_sha256 else 'unknown'}"
        for m in record.models
    )
    return f"weights: {', '.join(models)}"
