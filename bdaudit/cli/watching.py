"""Progress on stderr: a bar on a terminal, plain lines where nobody watches one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bdaudit.cli.streams import stderr_console, tell
from bdaudit.foundation.minutes import in_minutes
from bdaudit.foundation.progress import Progress
from bdaudit.foundation.remaining import Remaining
from bdaudit.plain_text import on_one_line

if TYPE_CHECKING:
    from rich.console import Console

    from bdaudit.foundation.progress import Listener

__all__ = ["PlainLines", "showing_progress"]

_SHOW_AFTER_S = 1.0
_STILL_AT_S = 30.0
_ROOM_FOR_A_BAR = 72  # columns; below, the words matter more


@contextmanager
def showing_progress(quiet: bool, *, results: str = "") -> Iterator[Listener]:
    """Give a listener that shows on stderr how far the work is.

    On a terminal that is one line with a bar and the time left. Elsewhere it is a plain line for
    every phase, and one every 30 seconds where a phase is long, so that a log shows that the run
    is alive. Nothing is shown of work under a second, nor when `quiet`.

    Args:
        quiet: Show nothing.
        results: Where results go; said with the plan of the run.
    """
    if quiet:
        yield lambda _: None
        return
    console = stderr_console()
    with _bar(console) if console.is_terminal else PlainLines().running() as show:

        def listen(event: Progress) -> None:
            if event.plan is not None:
                tell(f"bdaudit: {event.plan.in_short()}{f'; {results}' if results else ''}")
            show(event)

        yield listen


@contextmanager
def _bar(console: Console) -> Iterator[Listener]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    remaining = Remaining()
    words = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bars = Bars(
        TextColumn("{task.description}", markup=False, table_column=words),
        *([BarColumn(bar_width=10)] if console.width >= _ROOM_FOR_A_BAR else []),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
        console=console,
        expand=True,
        transient=True,
    )
    task = bars.add_task("starting", total=None, left="")
    started = time.monotonic()

    def listen(event: Progress) -> None:
        now = time.monotonic()
        remaining.hear(event, now)
        if not bars.live.is_started and now - started > _SHOW_AFTER_S:
            bars.start()
        note = f" ({on_one_line(event.note)})" if event.note else ""
        bars.update(
            task,
            description=f"{on_one_line(event.step)}{note}",
            completed=event.done,
            total=event.total,
            left=_left(remaining, now),
        )

    try:
        yield listen
    finally:
        bars.stop()


class PlainLines:
    """Lines for a log: one a phase, at most one a second, and one every 30 seconds.

    Args:
        still_at_s: Seconds after which a line says that a phase goes on.
    """

    def __init__(self, still_at_s: float = _STILL_AT_S) -> None:
        self._still_at_s = still_at_s
        self._remaining = Remaining()
        self._last = time.monotonic()
        self._phase = ""
        self._event: Progress | None = None
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Listener]:
        """Give the listener; a thread tells of a phase that sends no event for long."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(min(self._still_at_s, 1.0)):
                with self._lock:
                    self._tell_if_due()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield self.hear
        finally:
            over.set()
            watcher.join()

    def hear(self, event: Progress) -> None:
        """Take in an event."""
        with self._lock:
            self._event = event
            self._remaining.hear(event, time.monotonic())
            self._tell_if_due()

    def _tell_if_due(self) -> None:
        event, now = self._event, time.monotonic()
        if event is None:
            return
        silent, phase = now - self._last, event.step.split(",")[0]
        if silent < (self._still_at_s if phase == self._phase else _SHOW_AFTER_S):
            return
        share = f"{min(event.done / event.total, 1.0):.0%}" if event.total else "0%"
        left = _left(self._remaining, now)
        tell(f"bdaudit: {share:>4} {event.step}{f', {left}' if left else ''}")
        self._last, self._phase = now, phase


def _left(remaining: Remaining, now: float) -> str:
    seconds = remaining.seconds(now)
    return "" if seconds is None else f"{in_minutes(seconds)} left"
