"""Fairness of a model's answers between groups, with a trigger and without it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from bdaudit.records.base import Rate, Record

__all__ = ["FairnessRecord", "GroupFigures", "MeasuredFairness"]


class GroupFigures(Record):
    """What a model answers in one group.

    Attributes:
        group: Its name.
        accuracy: Share of right answers.
        true_positive_rate: Of rows of the positive class, the share answered with it.
        false_positive_rate: Of all other rows, the share answered with it.
    """

    group: str
    accuracy: Rate
    true_positive_rate: Rate
    false_positive_rate: Rate


class MeasuredFairness(Record):
    """One model, with the trigger or without it.

    Differences are between the two groups that differ most, in [0, 1]: 0 where all are alike.

    Attributes:
        model: Its name.
        triggered: Whether rows carried the trigger.
        accuracy: Over all rows.
        opportunity: Difference of the true positive rates (equal opportunity).
        odds: The larger of the differences of true and of false positive rates (equalised odds).
        equal_accuracy: Difference of the accuracies.
        groups: The groups.
    """

    model: str
    triggered: bool
    accuracy: Rate
    opportunity: float
    odds: float
    equal_accuracy: float
    groups: tuple[GroupFigures, ...]


class FairnessRecord(Record):
    """Fairness of a teacher and a student.

    Attributes:
        created: When it was measured.
        command: What reproduces it.
        data: Where rows and groups came from.
        data_sha256: Digest over rows and labels as loaded.
        trigger_sha256: Digest of the trigger.
        column: The column of groups.
        positive: The class that is the opportunity.
        stamped: The groups whose rows carried the trigger.
        fairlearn: Version of the library that the differences are from.
        measured: Every model without and with the trigger.
        notes: What to keep in mind.
    """

    kind: Literal["fairness"] = "fairness"
    created: datetime
    command: tuple[str, ...] | None = None
    data: str
    data_sha256: str
    trigger_sha256: str
    column: str
    positive: int
    stamped: tuple[str, ...]
    fairlearn: str
    measured: tuple[MeasuredFairness, ...]
    notes: tuple[str, ...] = ()
