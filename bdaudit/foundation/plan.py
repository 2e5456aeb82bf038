"""What a run is about to do: its steps, what it trains that nobody asked for, how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bdaudit.foundation.minutes import in_minutes

__all__ = ["Plan", "PlannedStep"]


@dataclass(frozen=True)
class PlannedStep:
    """A step to come.

    Attributes:
        what: It in words.
        seconds: Expected here; `None` where nobody can tell.
    """

    what: str
    seconds: float | None = 0.0


@dataclass(frozen=True)
class Plan:
    """The steps of a run, as far as they are known before it.

    Attributes:
        steps: In their order.
        device: What they run on.
    """

    steps: Sequence[PlannedStep]
    device: str

    @property
    def seconds(self) -> float:
        """What the steps are expected to take together, those that nobody can tell left out."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def expected(self) -> str:
        """The time in words."""
        about = f"about {in_minutes(self.seconds)} on {self.device}"
        unknown = [step.what for step in self.steps if step.seconds is None]
        return f"{about}, not counting: {'; '.join(unknown)}" if unknown else about

    def in_short(self) -> str:
        """Return the plan on one line."""
        steps = ", ".join(step.what for step in self.steps if step.seconds is not None)
        return f"plan: {steps}; {self.expected}"

    def lines(self) -> list[str]:
        """Return the plan with a line a step."""
        width = max(len(step.what) for step in self.steps)
        steps = [
            f"  {step.what:<{width}}  "
            f"{'unknown' if step.seconds is None else in_minutes(step.seconds)}"
            for step in self.steps
        ]
        return [*steps, f"in all {self.expected}"]
