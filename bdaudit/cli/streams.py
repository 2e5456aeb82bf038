"""Stdout and stderr: nothing that somebody else wrote reaches a terminal as a code.

`guarded` puts a guard before both for the time of a command. Whatever is written to `sys.stdout`
or `sys.stderr`, by whom ever, is made visible; what bdaudit draws itself (`stdout_console`) and
whole documents (`write_document`) go past it, to the streams as they are. Where a stream cannot be
written, an `OutputError` says so at once, and not the interpreter at its end.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from bdaudit.errors import ClosedOutputError, OutputError
from bdaudit.plain_text import on_one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "drop_stdout",
    "flush_stdout",
    "guarded",
    "help_console",
    "say",
    "stderr_console",
    "stderr_is_terminal",
    "stdout_console",
    "tell",
    "tell_traceback",
    "write_document",
]


class _Direct:
    """A text stream whose failures are errors of bdaudit's.

    Args:
        stream: The stream itself; `None` where it was closed before we began (`>&-`).
        name: "stdout" or "stderr". What cannot be said on stderr is left unsaid: the exit code
            must stay the one that was to be explained.
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        with self._failing():
            if self._stream is None:
                raise OSError(errno.EBADF, "is closed")
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._failing():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def direct(self) -> _Direct:
        return self

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._name == "stderr":
                return
            if isinstance(error, BrokenPipeError):
                raise ClosedOutputError(f"{self._name}: its reader closed it") from error
            raise OutputError(f"{self._name}: {error.strerror or error}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Guard(_Direct):
    """A stream that shows every code it is given, and sends none."""

    def write(self, text: str) -> int:
        super().write(visible(text))
        return len(text)

    def isatty(self) -> bool:
        # Who colours what it writes, or moves the cursor, would only see its codes spelt out.
        return False

    @property
    def direct(self) -> _Direct:
        return _Direct(self._stream, self._name)


@contextmanager
def guarded() -> Iterator[None]:
    """Put the guard before stdout and stderr, and take it away again."""
    before = sys.stdout, sys.stderr
    for stream in before:
        # A name that the terminal's encoding has no character for must not end an audit.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, _Guard(before[0], "stdout"))
    sys.stderr = cast(TextIO, _Guard(before[1], "stderr"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def flush_stdout() -> None:
    """Write what is still held back.

    Raises:
        OutputError: It cannot be written.
    """
    _direct(sys.stdout, "stdout").flush()


def drop_stdout() -> None:
    """Send nowhere what stdout could not take, lest the interpreter try again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _direct(stream: TextIO, name: str) -> _Direct:
    return stream.direct if isinstance(stream, _Direct) else _Direct(stream, name)


def say(text: object = "") -> None:
    """Write a line to stdout; a line break within it begins no new one.

    Raises:
        OutputError: It cannot be written.
    """
    _direct(sys.stdout, "stdout").write(on_one_line(str(text)) + "\n")


def tell(text: object) -> None:
    """Write a line to stderr, where that can be written; a line break in it begins no new one."""
    stream = _direct(sys.stderr, "stderr")
    stream.write(on_one_line(str(text)) + "\n")
    stream.flush()


def tell_traceback(error: BaseException | str) -> None:
    """Write a traceback to stderr, its lines kept and set in, so that none looks like ours."""
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    lines = "".join(f"  {line}\n" for line in visible(text).split("\n") if line)
    _direct(sys.stderr, "stderr").write(lines)


def write_document(text: str) -> None:
    """Write a whole document to stdout, as it is: its format keeps what is in it from harm.

    Raises:
        OutputError: It cannot be written.
    """
    stream = _direct(sys.stdout, "stdout")
    stream.write(text)
    stream.flush()


def stdout_console() -> Console:
    """Return a console for reports: plain text when stdout is not a terminal."""
    from bdaudit.report.console import open_console

    return open_console(cast(TextIO, _direct(sys.stdout, "stdout")))


def stderr_console() -> Console:
    """Return a console for progress."""
    from bdaudit.report.console import open_console

    return open_console(cast(TextIO, _direct(sys.stderr, "stderr")), stderr=True)


def help_console(*, stderr: bool = False, **settings: Any) -> Console:
    """Return a console as typer asks for one, for the help of a command."""
    from bdaudit.cli.help_tables import HelpConsole

    name = "stderr" if stderr else "stdout"
    stream = cast(TextIO, _direct(getattr(sys, name), name))
    return HelpConsole(file=stream, stderr=stderr, **settings)


def stderr_is_terminal() -> bool:
    """Return whether somebody watches stderr, as the console that draws progress there has it."""
    return stderr_console().is_terminal
