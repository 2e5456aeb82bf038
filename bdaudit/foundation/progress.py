"""How a long step reports on itself.

A step is a generator: it yields `Progress` while it works and returns its result. Nothing below
the command line prints; whoever drives the step decides what to show.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TypeVar

from bdaudit.foundation.plan import Plan

__all__ = ["Listener", "Progress", "Steps", "finish", "reworded", "within"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Progress:
    """One sign of life.

    Attributes:
        step: What is being done, in words for a person ("white box on defended, eps 0.02").
        done: Units finished so far, from 0 to `total`.
        total: Units of the whole step.
        note: A figure worth showing beside the bar, or an empty string.
        plan: What the run is about to do, once.
        in_seconds: Whether the units are seconds that the work was reckoned to take here.
    """

    step: str
    done: float
    total: float
    note: str = ""
    plan: Plan | None = None
    in_seconds: bool = False


Steps = Generator[Progress, None, Result]
"""A running step: yields `Progress`, returns `Result`."""

Listener = Callable[[Progress], None]
"""Somebody who wants to hear of progress."""


def finish(steps: Steps[Result], listener: Listener | None = None) -> Result:
    """Run `steps` to the end, tell `listener` of every `Progress`, and give back the result.

    The generator is closed when the listener raises (Ctrl-C included), so that hooks and model
    modes are put back.
    """
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            if listener is not None:
                listener(event)
    finally:
        steps.close()


def reworded(steps: Steps[Result], change: Callable[[Progress], Progress]) -> Steps[Result]:
    """Run an inner step inside an outer one, its progress put in the outer one's terms.

    The inner step is closed when the outer one is.
    """
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            yield change(event)
    finally:
        steps.close()


def within(first: float, share: float) -> Callable[[Progress], Progress]:
    """Return what moves a step's events into a part of a longer one, whose whole is 1.

    Args:
        first: Where the part begins, in [0, 1].
        share: How long it is.
    """

    def change(event: Progress) -> Progress:
        done = event.done / event.total if event.total else 1.0
        return replace(event, done=first + share * done, total=1.0)

    return change
