"""A trigger as an inversion method gives it."""

from __future__ import annotations

from dataclasses import dataclass

from bdaudit.triggers import TargetRule, Transform

__all__ = ["Recovered"]


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A trigger recovered from the original toward one arm's target.

    Attributes:
        arm: Which arm.
        transform: What it does to images.
        own: What the same search gave on each innocent model at the same size, to be scored on
            that model; `None` where a method bounds success and compares sizes.
        size: In `unit`.
        rule: Where it takes images, of an arm that did not say: read from the original's answers.
        unit: Of the size, where it is not that of the sizes in the race.
    """

    arm: int
    transform: Transform
    own: tuple[Transform, ...] | None
    size: float
    rule: TargetRule | None = None
    unit: str | None = None
