from __future__ import annotations

from dataclasses import replace

import pytest

from bdaudit.foundation.progress import Progress, Steps, finish, reworded


def counting(closed: list[str]) -> Steps[int]:
    try:
        for k in range(3):
            yield Progress("inner", k, 3)
    finally:
        closed.append("inner")
    return 7


def test_finish_returns_the_result_and_tells_of_everything() -> None:
    heard: list[Progress] = []
    assert finish(counting([]), heard.append) == 7
    assert [event.done for event in heard] == [0, 1, 2]


def test_a_listener_that_raises_closes_the_step() -> None:
    closed: list[str] = []

    def stop(event: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(counting(closed), stop)
    assert closed == ["inner"]


def test_reworded_changes_the_events_and_keeps_the_result() -> None:
    heard: list[Progress] = []
    steps = reworded(counting([]), lambda event: replace(event, step="outer"))
    assert finish(steps, heard.append) == 7
    assert {event.step for event in heard} == {"outer"}


def test_closing_the_outer_step_closes_the_inner_one() -> None:
    closed: list[str] = []
    steps = reworded(counting(closed), lambda event: event)
    next(steps)
    steps.close()
    assert closed == ["inner"]
