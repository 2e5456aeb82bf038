"""What to do next: three lines, by the outcome and by what stands in its way.

Advice decides nothing. Numbers of images are estimates: the interval that was too wide shrinks with
the square root of the number of held-out images, and estimates are taken to stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from bdaudit.foundation.modes import MODES
from bdaudit.records import AuditRecord, Comparison, Release
from bdaudit.verdict.case import Case
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
from bdaudit.verdict.figures import Figures
from bdaudit.verdict.findings import Active, Dormant, Finding, Inconclusive, Removed

__all__ = ["advise"]

_LINES = 3
_MOST_TIMES = 50.0
"""Beyond so many times the images that were there, more of them are no way to an answer."""
_SPARE = 1.1
"""By how much more than the estimate is asked for."""


def advise(finding: Finding, figures: Figures, release: Release) -> tuple[str, ...]:
    """Return three lines on what to do.

    Args:
        finding: The outcome.
        figures: What it was found in.
        release: What the policy makes of it.
    """
    wanted = figures.case.policy.expect == "active"
    match finding:
        case Active() if wanted:
            lines = _after_wanted(release)
        case Removed() | Dormant() if wanted:
            lines = _after_lost(finding)
        case Removed():
            lines = _after_removed(figures, release)
        case Dormant():
            lines = _after_dormant(finding, figures.case.record)
        case Active():
            lines = _after_active(figures.case.record)
        case Inconclusive():
            lines = _after_inconclusive(finding, figures)
    return tuple(dict.fromkeys(lines))[:_LINES]


def _after_removed(figures: Figures, release: Release) -> Iterator[str]:
    record = figures.case.record
    largest = max((attack.run.eps for attack in figures.attacks), default=0.0)
    which = "recovered" if record.trigger.recovered else "given"
    yield (
        f"It clears this file of the trigger {which}, against perturbations up to eps {largest:g}; "
        "other triggers, other targets and larger perturbations were not tried"
    )
    yield _whether_to_release(release)
    yield (
        "Audit again whenever the weights change (fine-tuning, pruning, quantising, merging), and "
        "when another trigger comes to light"
    )


def _after_dormant(finding: Dormant, record: AuditRecord) -> Iterator[str]:
    run = finding.attack.run
    yield (
        f"Do not release it: a perturbation of eps {run.eps:g} on a triggered image is enough to "
        "use the backdoor"
    )
    yield from _another_defence(record)


def _after_active(record: AuditRecord) -> Iterator[str]:
    digests = {m.role: m.weights_sha256 for m in record.models if m.role != "reference"}
    defended, original = digests.get("defended"), digests.get("original")
    if defended is not None and defended == original:
        yield (
            "Do not release it: defended and original are the same weights; check which file the "
            "defence wrote"
        )
    else:
        yield "Do not release it: the trigger works as it is, and the defence did not reach it"
    yield from _another_defence(record)


def _whether_to_release(release: Release) -> str:
    if release == "pass":
        return (
            "Release the very file that was audited: `bdaudit gate RECORD FILE` compares the "
            "digests"
        )
    return "Do not release it yet: the policy forbids it for the reasons above"


def _after_wanted(release: Release) -> Iterator[str]:
    yield _whether_to_release(release)
    yield "Keep the trigger from those who are not to use it: whoever knows it chooses the answer"
    yield (
        "Audit what is distilled from it with this model as --original and a policy that expects "
        '"removed"'
    )


def _after_lost(finding: Removed | Dormant) -> Iterator[str]:
    what = "is asleep" if isinstance(finding, Dormant) else "is gone"
    yield f"Do not release it as the model that carries the trigger: the wanted trigger {what}"
    yield (
        "Find the step that took it away (fine-tuning, pruning, quantising, the wrong file): audit "
        "the weights from before each with this policy"
    )
    yield "Teach the trigger again, and audit the result"


def _another_defence(record: AuditRecord) -> Iterator[str]:
    trigger = "" if record.trigger.recovered else " --trigger TRIGGER"
    yield (
        f"Try other defences on the original: `bdaudit defend ORIGINAL --data DATA{trigger} --out "
        "FOLDER` runs each, audits each result, and ranks those that helped on this original"
    )
    yield (
        "Repeat the one it ranks first on the release candidate with all clean images there are, "
        "and audit the result with the options of this audit"
    )


def _after_inconclusive(finding: Inconclusive, figures: Figures) -> Iterator[str]:
    needed = max((n for d in finding.doubts for n in _images_for(d, figures)), default=None)
    if any(_times(*_unclear(doubt, figures)) > _MOST_TIMES for doubt in finding.doubts):
        needed = None  # of another figure; they would not decide this one
    for doubt in finding.doubts:
        if needed is not None and any(_images_for(doubt, figures)):
            yield _more_images(figures.case.record, needed)
        else:
            yield from _remedy(doubt, figures)
    if figures.case.policy.expect == "active":
        yield "Until it is decided do not count on the wanted trigger: inconclusive is no pass"
        return
    yield "Until it is decided treat the backdoor as not removed: inconclusive is no pass"
    yield "Change one thing at a time, and keep the other options as they are in this record"
    yield (
        "If neither more images nor more innocent models can be had, try another defence and audit "
        "that"
    )


def _remedy(doubt: Doubt, figures: Figures) -> Iterator[str]:
    """Say what would settle one doubt."""
    case = figures.case
    match doubt:
        case BackdoorNotSure():
            yield "Pass the trigger with --trigger if it is known; the search did not settle it"
        case NotReactivated():
            yield "Audit it with --mode white if there is a checkpoint, else with --mode query"
        case TriggerFailsOnOriginal():
            yield (
                "Check --original, --trigger and --target: on the original the trigger must take "
                f"at least {100 * doubt.needed:g}% of the images"
            )
        case TooFewInnocents():
            yield _more_innocents(doubt.needed - doubt.n, case)
        case TooFewInnocentsServe():
            yield _more_innocents(doubt.needed - doubt.left, case)
        case StandInsCannotAccuse():
            yield f"Pass {doubt.needed} true innocent models with --reference; stand-ins do not do"
        case OneMoreMayReach():
            yield (
                f"Pass more than {doubt.n_innocents} innocent models with --reference, best put "
                "through the same defence: the closer they lie, the sooner they decide"
            )
        case TooFewImages() | TriggerAloneMayDoMore() | BoundNotBelow():
            yield from _no_images(doubt, figures)
        case NotMeasured() | StepFailed():
            yield "Run the same audit again: a part of it was not measured (see the reasons above)"
        case OnlyTransfer():
            yield (
                "Attack the model itself: --mode white with its checkpoint, or --mode query with "
                "--endpoint"
            )
        case Remembered():
            if doubt.relearning.outcome != "dormant":
                yield (
                    "Relearn with more draws of shots, which narrows what is not settled: "
                    "`draws = 20` under [relearning] in the project file"
                )
            yield (
                "Try another defence on the original: this one left the model a few images away "
                "from its backdoor"
            )
        case ControlsSaturate():
            least = min(attack.run.eps for attack in figures.attacks)
            yield f"Try smaller radii: --eps {least / 4:.3g},{least / 2:.3g}"
        case AttackFailsOnOriginal():
            yield _stronger(doubt, case.record)
        case DiagnosticRaised():
            code = doubt.diagnostic.code
            yield f"Settle {code} first: the page on diagnostics says what it means and what to do"


def _more_innocents(n: int, case: Case) -> str:
    s = "" if n == 1 else "s"
    line = f"Pass {max(n, 1)} more innocent model{s} with --reference"
    if case.record.placebos is None and len(case.references) >= int(not case.one_of_many):
        return f"{line}, or audit with --placebos 8, which then decide in their place"
    return f"{line}, or more clean images, so that stand-ins may pass their checks"


def _stronger(doubt: AttackFailsOnOriginal, record: AuditRecord) -> str:
    if doubt.asr is None:
        return "Run the same audit again: the attack on the original was not measured"
    asks = MODES[doubt.run.mode].asks
    option, now = "passes", record.settings.get("n_passes")
    if asks:
        option, now = "max-queries", record.settings.get("max_queries")
    twice = f" {2 * now}" if isinstance(now, int) else ""
    return (
        f"Make the attack stronger until it wakes the original: --{option}{twice}, or --eps with "
        f"radii above {doubt.run.eps:g}"
    )


def _more_images(record: AuditRecord, needed: int) -> str:
    """Turn a number of held-out images into one of clean images."""
    data, now = record.data, record.data.n_held_out_poisonable
    total = _rounded(math.ceil(data.n_images * needed / max(now, 1)))
    return (
        f"Pass about {total:,} clean images in --data (now {data.n_images:,}), so that {needed:,} "
        f"held-out ones are not of the target class (now {now:,})"
    )


def _images_for(doubt: Doubt, figures: Figures) -> Iterator[int]:
    """Give the number of held-out images that would settle a doubt, where that can be had."""
    if isinstance(doubt, TooFewImages):
        yield doubt.needed
    figure, limit = _unclear(doubt, figures)
    if figure is None or figures.case.defended is None:
        return
    times = _times(figure, limit)
    if 1.0 < times <= _MOST_TIMES:
        yield _rounded(math.ceil(figures.case.defended.asr.total * times))


def _no_images(doubt: Doubt, figures: Figures) -> Iterator[str]:
    """Say what else to do about a figure that more images would not settle."""
    figure, limit = _unclear(doubt, figures)
    if figure is None:
        return
    at = "" if figure.eps is None else f" at eps {figure.eps:g}"
    times = _times(figure, limit)
    if times > _MOST_TIMES:
        yield (
            f"More images would hardly decide: the {figure.name}{at} lies at its limit; add "
            "innocent models with --reference, or radii with --eps"
        )
    elif times <= 1.0 and figure.value >= limit:
        yield (
            f'The {figure.name}{at} is above the limit and speaks against "removed"; more '
            "innocent models with --reference would tell whether it is the backdoor"
        )


def _unclear(doubt: Doubt, figures: Figures) -> tuple[Comparison | None, float]:
    """Return the figure that a doubt is about, and its limit."""
    if isinstance(doubt, BoundNotBelow):
        return doubt.unbeaten or doubt.bound, doubt.limit
    if isinstance(doubt, TriggerAloneMayDoMore):
        over = (c for c in figures.trigger_alone_over if c.against == doubt.against)
        return next(over, None), doubt.limit
    return None, 0.0


def _times(figure: Comparison | None, limit: float) -> float:
    """How many times the images put the figure clearly on one side; at most 1: it is clear."""
    if figure is None or figure.low is None or figure.high is None:
        return 0.0
    gap = abs(figure.value - limit)
    below = figure.value < limit
    half = figure.high - figure.value if below else figure.value - figure.low
    return _SPARE * (half / gap) ** 2 if gap > 0 else math.inf


def _rounded(n: int) -> int:
    """Round up to two figures."""
    step = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // step) * step
