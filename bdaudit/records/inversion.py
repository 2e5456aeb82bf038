"""The search for a trigger that nobody knows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bdaudit.records.base import Fraction, Rate, Record
from bdaudit.records.header import ModelInfo, TriggerInfo

__all__ = ["Inversion", "InversionRun", "KeptTrigger", "RecoveredTrigger", "TargetScore"]


class TargetScore(Record):
    """One hypothesis about the target of an unknown trigger, tried by one method.

    Attributes:
        target_label: `None` for a rule without a single target.
        size: What the original needs, in the method's unit, at the race's budget (or when the
            class was dropped from it); smaller means more suspicious.
        innocent_sizes: What each innocent model needs for the same class.
        gain: log2 of how many times less the original needs than innocent models do, less what all
            its classes have in common.
        score: The gain in standard deviations; `None` with a reason in the method's record.
        p_value: Corrected for all classes and methods; 1 of a class that was dropped.
        dropped_after: Stage of the race after which it was dropped, `None` if it never was.
    """

    target_rule: str
    target_label: int | None
    size: float
    innocent_sizes: tuple[float, ...] = ()
    gain: float
    score: float | None = None
    p_value: Fraction | None = None
    dropped_after: int | None = None


class InversionRun(Record):
    """One method of trigger inversion, over all classes.

    Attributes:
        unit: Of the sizes.
        scores: Most suspicious first.
        spread: Standard deviation of a gain that is taken to be chance, in doublings.
        degrees: Degrees of freedom of the t distribution behind the p-values.
        reason: Why there are no p-values.
        gradient_passes: Images differentiated / craft images, all models together.
        naive_passes: The same had every class gone as far as the recovered ones did.
    """

    method: str
    unit: str
    scores: tuple[TargetScore, ...]
    spread: float | None = None
    degrees: int | None = None
    reason: str | None = None
    gradient_passes: float
    naive_passes: float
    elapsed_s: float


class RecoveredTrigger(Record):
    """A trigger recovered from the original, and what it does on held-out images.

    Attributes:
        class_map: For the rule `class-map`, the class each class is taken to; its own where its
            images do not count.
        size: In the unit of its method.
        p_value: As in the ranking.
        asr: Success on the original; the images are those whose label is not the target.
        clean_target_rate: The same images without the trigger.
        innocent_asr: The same trigger on each innocent model.
        own_asr: What the same search found on each innocent model at the same size, on that
            model; empty where the method compares sizes and not success.
        wakes_original: Whether its success is surely high, and surely above all of those.
        why_not: Where it is not.
    """

    method: str
    target_rule: str
    target_label: int | None
    size: float
    unit: str
    p_value: Fraction | None
    asr: Rate
    clean_target_rate: Rate
    innocent_asr: tuple[Rate, ...] = ()
    own_asr: tuple[Rate, ...] = ()
    wakes_original: bool
    why_not: str | None = None
    trigger: TriggerInfo
    class_map: tuple[int, ...] | None = None


class KeptTrigger(Record):
    """A recovered trigger as the files that `bdaudit invert --out` would write.

    Attributes:
        files: The content of each by its name, deflated (zlib) and in base64.
    """

    files: dict[str, str]


class Inversion(Record):
    """The search for a trigger that nobody knows, in the original.

    Attributes:
        outcome: `found`, `none` or `unsure`, by the limits in `settings`.
        why: One sentence.
        candidates: Recovered triggers, the one to go on with first.
        n_tests: Comparisons that the p-values are corrected for.
        references: Names of the innocent models, in the order of all lists here.
        made: Innocent models that were made for the search from the labels of clean images.
        left_out: Why innocent models, made or given, were not held against the original, by
            name.
        skipped: Targets that could not be tried, in words.
        settings: Of the searches and of the decision.
    """

    outcome: Literal["found", "none", "unsure"]
    why: str
    candidates: tuple[RecoveredTrigger, ...]
    runs: tuple[InversionRun, ...]
    n_tests: int
    references: tuple[str, ...] = ()
    made: tuple[ModelInfo, ...] = ()
    left_out: dict[str, str] = Field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    settings: dict[str, Any]
    elapsed_s: float
