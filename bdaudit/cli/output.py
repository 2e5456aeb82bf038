"""What commands show and write: progress on stderr, reports on stdout, JSON where asked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bdaudit.atomic import write_atomically
from bdaudit.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from bdaudit.progress import Listener, Progress
    from bdaudit.results import AuditRecord, ReactivationRecord, ScoreRecord

__all__ = ["JsonSink", "check_writable", "show_record", "showing_progress", "stdout_console"]

_SHOW_AFTER_S = 1.0


def stdout_console() -> Console:
    """Return a console for reports: plain text when stdout is not a terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=False)


@contextmanager
def showing_progress(quiet: bool) -> Iterator[Listener]:
    """Give a listener that draws a bar with the time left on stderr.

    Nothing is drawn for work under a second, when stderr is not a terminal, or when `quiet`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console,
        transient=True,
    )
    task = bars.add_task("starting", total=None, note="")
    started = time.monotonic()

    def listen(event: Progress) -> None:
        if not bars.live.is_started and time.monotonic() - started > _SHOW_AFTER_S:
            bars.start()
        bars.update(
            task,
            description=event.step,
            completed=event.done,
            total=event.total,
            note=event.note,
        )

    try:
        yield listen
    finally:
        bars.stop()


class JsonSink:
    """Where `--json` goes, checked before any work is done.

    Args:
        destination: A path, `-` for stdout, or `None` for nowhere.

    Raises:
        InputError: The folder is not there or cannot be written to.
    """

    def __init__(self, destination: str | None) -> None:
        self.to_stdout = destination == "-"
        self.path = None if destination in (None, "-") else Path(str(destination))
        if self.path is not None:
            check_writable(self.path)

    def write(self, text: str) -> None:
        """Write `text` whole, or not at all."""
        if self.to_stdout:
            # Not through rich, which would fold long lines.
            sys.stdout.write(text)
            sys.stdout.flush()
        elif self.path is not None:
            write_atomically(self.path, text.encode())


def check_writable(path: Path) -> None:
    """Make sure that `path` can be written later.

    Raises:
        InputError: Its folder is not there or cannot be written to, or it is a folder itself.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: the folder {folder} cannot be written to")


def show_record(
    record: AuditRecord | ScoreRecord | ReactivationRecord, *, sink: JsonSink, quiet: bool
) -> None:
    """Write the JSON where it was asked for, then the report, unless stdout is taken or quiet."""
    from bdaudit.report.terminal import one_line, print_record
    from bdaudit.results import to_json

    sink.write(to_json(record))
    if sink.to_stdout:
        return
    if quiet:
        sys.stdout.write(one_line(record) + "\n")
        return
    print_record(record, stdout_console())
