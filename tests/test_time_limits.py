"""A call that takes too long is left, and one that does not is as if it were made directly."""

from __future__ import annotations

import threading
import time

import pytest

from bdaudit.foundation.time_limits import call_within


def test_what_is_returned_or_raised_comes_through() -> None:
    assert call_within(30, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_within(30, lambda: 1 / 0)


def test_a_call_that_does_not_end_is_left() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"longer than 0\.1 s"):
        call_within(0.1, lambda: release.wait(60))
    assert time.monotonic() - started < 20
    release.set()
