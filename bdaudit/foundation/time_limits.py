"""A time limit for a call that cannot be interrupted, such as waiting for a server to begin."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["call_within"]

Returned = TypeVar("Returned")


def call_within(seconds: float, call: Callable[[], Returned]) -> Returned:
    """Return what `call` returns, if it does in time.

    A library's own timeout is for the next byte. A server that sends one now and then keeps such a
    wait alive for ever.

    Args:
        seconds: How long it may take.
        call: Runs on a thread of its own. When it takes too long it is left to itself there, so it
            should end once the caller closes what it works on, and its result is dropped.

    Raises:
        TimeoutError: It took too long.
        BaseException: Whatever `call` raises.
    """
    done: queue.SimpleQueue[tuple[Returned | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=work, daemon=True, name="bdaudit-timed-call").start()
    try:
        returned, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"took longer than {seconds:g} s") from None
    if error is not None:
        raise error
    return returned  # type: ignore[return-value]
