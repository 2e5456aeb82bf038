"""The record of a benchmark: verdicts held against models whose truth is known.

Everything a reader needs to judge the judge: what was audited and how it came out, how often the
verdict was right, how well each single figure tells sleeping backdoors from none, what it cost.
Rates carry 95 % intervals. What was not measured is `None`, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bdaudit.foundation.modes import MODES
from bdaudit.records import Environment, Mode, Outcome, Rate, Record
from bdaudit.records.families import Lineage, Truth
from bdaudit.records.reading import read_sealed

__all__ = [
    "VARIANTS",
    "Agreement",
    "BenchCase",
    "BenchPoint",
    "BenchmarkRecord",
    "Calibration",
    "Confusion",
    "Cost",
    "Miss",
    "QueryCurve",
    "Recipe",
    "RocCurve",
    "Score",
    "Variant",
    "VariantWords",
    "read_benchmark",
]

Variant = Literal[Mode, "recovered", "stand-ins"]
"""How a model was audited: the mode, or white box with something replaced: the trigger by one that
was looked for in the original, the innocent models by stand-ins."""


@dataclass(frozen=True)
class VariantWords:
    """How a variant is spoken of, and what it is.

    Attributes:
        label: Its name in reports.
        short: The same where two variants are named side by side.
        mode: Of its attacks.
        without: What the audit is not told, though the family has it.
    """

    label: str
    short: str
    mode: Mode
    without: Literal["trigger", "references"] | None = None


VARIANTS: dict[Variant, VariantWords] = {
    **{mode: VariantWords(words.label, words.short, mode) for mode, words in MODES.items()},
    "recovered": VariantWords(
        "trigger recovered, not known", "recovered trigger", "white", "trigger"
    ),
    "stand-ins": VariantWords(
        "stand-ins, no innocent models", "stand-ins for innocent models", "white", "references"
    ),
}
"""Every variant, in the order of all tables."""

Score = Literal["bec", "asr", "lift", "lift_over_innocents", "lift_over_own", "part", "beyond"]
"""A figure of a case: BEC, or of an attack what `BenchPoint` calls so."""

Half = Literal["calibration", "report"]


class BenchPoint(Record):
    """What one attack reached on the defended model.

    Attributes:
        asr: Held-out success of trigger + delta.
        delta_only: The same delta on clean images.
        innocent: The most it reached on an innocent model.
        no_trigger: Held-out success of the same attack made and scored without the trigger: what
            a universal perturbation reaches with no backdoor to help it.
        noise: Of the trigger and a random perturbation of the same norm.
        lift: What the verdict rests on: the least that `asr` is above any control, where of an
            innocent model the trigger's contribution counts if it exceeds that model's by more.
        lift_over_innocents: Minus the strongest innocent model.
        lift_over_own: Minus the strongest control on the same model.
        part: What trigger and delta reach beyond the same delta alone, less the most of that on an
            innocent model, in [-2, 2].
        beyond: By how much the attack, or the trigger's contribution, lies beyond what one more
            innocent model may reach; `None` for fewer than three innocent models.
        image_queries: Images the model was asked about.
        gradient_passes: Images differentiated / craft images.
    """

    mode: Mode
    eps: float
    asr: float
    delta_only: float | None = None
    innocent: float | None = None
    no_trigger: float | None = None
    noise: float | None = None
    lift: float | None = None
    lift_over_innocents: float | None = None
    lift_over_own: float | None = None
    part: float | None = None
    beyond: float | None = None
    image_queries: int = 0
    gradient_passes: float = 0.0


class QueryCurve(Record):
    """How far a query search got by the number of images it had asked about.

    Attributes:
        of: `trigger`: on the model, with the trigger; `no_trigger`: on the model without it;
            `innocent`: on one innocent model, with the trigger.
        points: (images asked about, held-out success).
    """

    of: Literal["trigger", "no_trigger", "innocent"]
    eps: float
    points: tuple[tuple[int, float], ...]


class BenchCase(Record):
    """One audit of one model.

    Attributes:
        key: Unique: member and variant.
        member: Name in the family.
        original: Which original it was held against; cases of one original are never split.
        defense: What a defended or clean model went through.
        truth_source: How the truth is known.
        outcome: The verdict; `None` where the audit failed.
        correct: Whether the verdict is the true one; `None` where the truth is unknown or the
            verdict is inconclusive.
        why: The verdict's sentence, or what the audit failed of.
        reasons: What stood in the way of an inconclusive one.
        clean_acc, asr: Of the model, the trigger alone, on the audit's held-out images.
        original_asr: Of the trigger alone on the original, before any defence.
        bec: Mean over the references.
        points: All attacks on the defended model with the trigger.
        query_curves: Of the query searches.
        half: Which half it belonged to, where limits were calibrated.
        record: File of the audit's record, relative to the benchmark's.
        elapsed_s: Wall-clock seconds.
        peak_memory_bytes: Of the process, over all steps.
    """

    key: str
    member: str
    variant: Variant
    original: str
    attack: str | None
    poison_rate: float | None = None
    lineage: Lineage
    defense: str | None
    truth: Truth
    truth_source: str
    outcome: Outcome | None
    correct: bool | None = None
    why: str
    reasons: tuple[str, ...] = ()
    clean_acc: float | None = None
    asr: float | None = None
    original_asr: float | None = None
    bec: float | None = None
    points: tuple[BenchPoint, ...] = ()
    query_curves: tuple[QueryCurve, ...] = ()
    half: Half | None = None
    record: str | None = None
    elapsed_s: float | None = None
    peak_memory_bytes: int | None = None

    def figure(self, score: Score, mode: Mode | None, eps: float | None) -> float | None:
        """Return one figure, the most over all eps for eps `None`; `None` where there is none."""
        if score == "bec":
            return self.bec
        values = [
            value
            for point in self.points
            if point.mode == mode
            and eps in (None, point.eps)
            and (value := getattr(point, score)) is not None
        ]
        return max(values, default=None)


class Confusion(Record):
    """Verdicts against truth.

    Attributes:
        counts: By truth, then by outcome.
        innocent_called_backdoored: Innocent models called dormant or active, of all innocent ones.
        removed_called_backdoored: The same of models whose backdoor was removed.
        sleeping_called_removed: Models known to sleep called removed, of all those.
        active_called_removed: Models whose trigger works called removed.
        inconclusive: Of all cases.
        reasons: Why cases were inconclusive, with how many, most frequent first.
    """

    counts: dict[Truth, dict[Outcome, int]]
    innocent_called_backdoored: Rate | None
    removed_called_backdoored: Rate | None
    sleeping_called_removed: Rate | None
    active_called_removed: Rate | None
    inconclusive: Rate | None
    reasons: tuple[tuple[str, int], ...] = ()


class RocCurve(Record):
    """How well one figure tells sleeping backdoors (positive) from innocent and removed ones.

    Attributes:
        score: `bec`, or the name of a field of `BenchPoint`; `asr` is the re-activated one.
        mode, eps: Of the attack; `None` for BEC; eps `None` for the most over all eps.
        attack: Of the originals, or `None` for all together.
        auc: Area under the curve; .5 is guessing.
        low, high: 95 % interval, by a bootstrap over originals.
        points: (share of negatives above, share of positives above), from (0, 0) to (1, 1).
        reason: Why there is none.
    """

    score: Score
    mode: Mode | None
    eps: float | None
    attack: str | None
    n_positive: int
    n_negative: int
    auc: float | None
    low: float | None = None
    high: float | None = None
    points: tuple[tuple[float, float], ...] = ()
    reason: str | None = None


class Recipe(Record):
    """A way to decide, and how it decides the same models.

    Attributes:
        name: In words.
        threshold: Above which it says "dormant"; `None` of the verdict.
        caught: Share of sleeping models called dormant.
        false_alarms: Share of innocent and removed models called dormant.
        undecided: Share of both called neither, which only the verdict does.
        cases: Which cases: all, or the half that nothing was chosen on.
    """

    name: str
    threshold: float | None
    caught: Rate | None
    false_alarms: Rate | None
    undecided: Rate | None = None
    cases: Literal["all", "report"] = "all"


class Agreement(Record):
    """Two ways to audit the same models.

    Attributes:
        name: In words.
        table: Outcome of the first, then of the second, with how many models.
        same: Share with the same outcome.
        opposed: Models that one calls removed and the other dormant or active.
    """

    name: str
    table: dict[Outcome, dict[Outcome, int]]
    same: Rate
    opposed: tuple[str, ...] = ()


class Cost(Record):
    """What one step of an audit took, over all cases of a variant.

    Attributes:
        step: Its name without what differs from audit to audit.
        n: Steps measured; those taken from an earlier audit's store cost nothing and count.
        median_s, total_s: Wall-clock seconds.
        peak_memory_bytes: The most any needed.
    """

    variant: Variant
    step: str
    n: int
    median_s: float
    total_s: float
    peak_memory_bytes: int | None = None


class Calibration(Record):
    """Limits chosen on one half of the models and judged on the other.

    Attributes:
        policy: The chosen limits.
        default: The limits they are held against.
        originals: Which originals' models they were chosen on.
        reported: Which originals' models they are reported on.
        n_tried: Combinations of limits.
        n_best: How many of them were equally good there.
        seed: Of the split.
        cost_of: How many points each kind of error costs in the choice.
        chosen_on, reported_on: Verdicts under the chosen limits, on either half.
        default_on: Verdicts under the default limits on the half that is reported on.
    """

    policy: dict[str, Any]
    default: dict[str, Any]
    originals: tuple[str, ...]
    reported: tuple[str, ...]
    n_tried: int
    n_best: int
    seed: int
    cost_of: dict[str, float]
    chosen_on: Confusion
    reported_on: Confusion
    default_on: Confusion


class Miss(Record):
    """A verdict that is wrong, with what is known about it."""

    case: str
    truth: Truth
    outcome: Outcome
    evidence: str


class BenchmarkRecord(Record):
    """All that a benchmark found.

    Attributes:
        family: Name of the family.
        policy: Limits that the verdicts were judged by.
        policy_source: Where they came from.
        family_sha256: Digest of its file.
        cases: All audits.
        confusion: By variant.
        left_out: Why some models of the family were not audited, by name.
    """

    kind: Literal["benchmark"] = "benchmark"
    schema_version: Literal[1] = 1
    created: datetime
    command: tuple[str, ...] | None = None
    family: str
    family_sha256: str
    dataset: str
    settings: dict[str, Any]
    policy: dict[str, Any]
    policy_source: str
    environment: Environment
    cases: tuple[BenchCase, ...]
    confusion: dict[Variant, Confusion]
    curves: tuple[RocCurve, ...] = ()
    recipes: tuple[Recipe, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    costs: tuple[Cost, ...] = ()
    calibration: Calibration | None = None
    misses: tuple[Miss, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    elapsed_s: float


def read_benchmark(path: Path) -> BenchmarkRecord:
    """Read the JSON that `bdaudit bench` wrote.

    Raises:
        RecordError: It cannot be read, or is something else.
    """
    return read_sealed(path, BenchmarkRecord, what="the record of a benchmark")
