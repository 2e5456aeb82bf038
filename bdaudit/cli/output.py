"""What commands show and write: progress on stderr, reports on stdout, JSON where asked."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bdaudit.cli.exits import EXIT_INTERRUPTED
from bdaudit.cli.streams import say, stdout_console, tell, write_document
from bdaudit.cli.watching import showing_progress
from bdaudit.errors import (
    ClosedOutputError,
    ConfigError,
    InputError,
    OutputError,
    RecordError,
    RemoteError,
)
from bdaudit.foundation.writing import write_atomically
from bdaudit.plain_text import shortened

if TYPE_CHECKING:
    from bdaudit.auditing import FolderStore
    from bdaudit.foundation.progress import Listener, Steps
    from bdaudit.records import AnyDocument

__all__ = [
    "JsonSink",
    "ReportSinks",
    "check_writable",
    "files_of_reports",
    "keeping_parts",
    "results_go_to",
    "running_many",
    "show_plan",
    "show_record",
    "tell_written",
    "telling_what_is_kept",
    "write_file",
]


@contextmanager
def telling_what_is_kept(store: FolderStore | None) -> Iterator[None]:
    """Say, when a run ends before its result is there, how to go on with what it measured."""
    try:
        yield
    except (RemoteError, OutputError, KeyboardInterrupt):
        if store is not None and store.folder.is_dir():
            tell(
                f"bdaudit: results so far are kept in {store.folder}; run the same command with "
                f"--resume to continue"
            )
        raise


@contextmanager
def running_many(folder: Path, quiet: bool, *, results: str = "") -> Iterator[Listener]:
    """Show the progress of a run of many parts whose results are kept in `folder`."""
    with showing_progress(quiet, results=results) as listener, keeping_parts(folder):
        yield listener


@contextmanager
def keeping_parts(folder: Path) -> Iterator[None]:
    """Say, when a run of many parts is interrupted, that what is finished is kept in `folder`.

    Stdout is sent to stderr meanwhile: Ray tells on it of workers that died, where our JSON may go.
    """
    with redirect_stdout(sys.stderr):
        try:
            yield
        except KeyboardInterrupt:
            tell(
                f"bdaudit: interrupted; finished work is kept in {folder}; run the same command "
                f"again to continue"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None


class JsonSink:
    """Where `--json` goes, checked before any work is done.

    Args:
        destination: A path, `-` for stdout, or `None` for nowhere.
        quiet: Do not say which files were written.

    Raises:
        InputError: The folder is not there or cannot be written to.
    """

    def __init__(self, destination: str | None, *, quiet: bool = False) -> None:
        self.to_stdout = destination == "-"
        self.quiet = quiet
        self.path = None if destination in (None, "-") else Path(str(destination))
        if self.path is not None:
            check_writable(self.path)

    def write(self, text: str) -> None:
        """Write `text` whole, or not at all.

        Raises:
            OutputError: It cannot be written any more.
        """
        if self.to_stdout:
            # Not through rich, which would fold long lines.
            write_document(text)
        elif self.path is not None:
            write_file(self.path, text)
            if not self.quiet:
                tell_written(self.path)


def _demand_format(name: str, kind: str) -> None:
    from bdaudit.report.formats import demand_format_for

    try:
        demand_format_for(name, kind)
    except ConfigError as error:
        raise ConfigError(f"--report: {error}") from error


class ReportSinks:
    """Where `--report` goes, checked before any work is done.

    Args:
        destinations: `FORMAT=FILE` each; `-` for stdout.
        of: Kind of the record that is reported.
        json: Where `--json` goes, which takes stdout as well; whether it tells of files holds
            for reports too.
        merge: A file that the one report which can be merged is put into; it is only read.

    Raises:
        ConfigError: An unknown format, one that shows no such record, no file, one file for two
            reports, or something to merge into without one report that can be.
        InputError: A file cannot be written.
    """

    def __init__(
        self,
        destinations: Sequence[str] | None,
        *,
        of: str = "audit",
        json: JsonSink | None = None,
        merge: Path | None = None,
    ) -> None:
        from bdaudit.report.formats import MERGED

        self._sinks: list[tuple[str, str]] = []
        self._quiet = json is None or json.quiet
        taken = set() if json is None else {"-" if json.to_stdout else str(json.path)}
        for destination in destinations or ():
            name, separator, file = destination.partition("=")
            if not separator or not file:
                raise ConfigError(f"--report: expected FORMAT=FILE, got {destination!r}")
            _demand_format(name, of)
            if file in taken:
                raise ConfigError(
                    f"--report: {destination}: {file} is already used by another output"
                )
            taken.add(file)
            if file != "-":
                check_writable(Path(file))
            self._sinks.append((name, file))
        self._merge = merge
        mergeable = [name for name, _ in self._sinks if name in MERGED]
        if merge is not None and len(mergeable) != 1:
            raise ConfigError(
                f"--merge {merge}: expected exactly one --report that can be merged "
                f"({', '.join(MERGED)}), got {len(mergeable)}"
            )

    def demand_kind(self, kind: str) -> None:
        """Refuse formats that show no record of this kind.

        Raises:
            ConfigError: One does not.
        """
        for name, _ in self._sinks:
            _demand_format(name, kind)

    @property
    def files(self) -> list[str]:
        """Names of the files that are written."""
        return [file for _, file in self._sinks if file != "-"]

    @property
    def to_stdout(self) -> bool:
        """Whether one of them takes stdout."""
        return any(file == "-" for _, file in self._sinks)

    def write(self, record: AnyDocument, *, variant: str = "") -> None:
        """Write every report, each whole or not at all.

        One that fails is said on stderr and leaves the others as they are.

        Args:
            record: What is reported.
            variant: Put before the file's suffix, where several records are written.

        Raises:
            RecordError: The record is none that one or more of them can show; the others are
                written.
            OutputError: One or more could not be written; the others are.
        """
        lost: list[OutputError] = []
        n_not_shown = 0
        for name, file in self._sinks:
            path = Path(file)
            if variant:
                path = path.with_name(f"{path.stem}-{variant}{path.suffix}")
            try:
                text = _text_of(name, record, path, self._merge)
            except Exception as error:  # a report that cannot be drawn must not cost the verdict
                if _merges(name, path, self._merge) and isinstance(error, InputError):
                    raise  # a file of the user's cannot be used; the record is there all the same
                gist = str(error).strip().splitlines() or [type(error).__name__]
                tell(f"bdaudit: no {name} report in {path}: {gist[0]}")
                lost.append(OutputError(f"{path}: {gist[0]}"))
                n_not_shown += isinstance(error, RecordError)
                continue
            try:
                if file == "-":
                    write_document(text)
                else:
                    write_file(path, text)
                    if not self._quiet:
                        tell_written(path)
            except OutputError as error:
                lost.append(error)
                if not isinstance(error, ClosedOutputError):
                    tell(f"bdaudit: no {name} report in {path}: {error}")
        closed = [error for error in lost if isinstance(error, ClosedOutputError)]
        if closed:
            raise closed[0]
        if lost and n_not_shown == len(lost):
            raise RecordError(
                f"{n_not_shown} of {len(self._sinks)} reports, named above, cannot show this record"
            )
        if lost:
            raise OutputError(f"{len(lost)} of {len(self._sinks)} reports, named above")


def _merges(name: str, path: Path, merge: Path | None) -> bool:
    """Return whether a report is put into a file that is there."""
    from bdaudit.report.formats import MERGED

    return name in MERGED and (merge is not None or (name == "model-card" and path.is_file()))


def _text_of(name: str, record: AnyDocument, path: Path, merge: Path | None) -> str:
    """Return a report, put into what it is merged with.

    A model card is a person's file with a section of ours in it, so one that is there is kept.
    """
    from bdaudit.report.formats import merge_report, render_report

    if not _merges(name, path, merge):
        return render_report(name, record)
    return merge_report(name, record, path if merge is None else merge)


def files_of_reports(reports: Sequence[str] | None, formats: Sequence[str]) -> dict[str, Path]:
    """Read where each format of a document with formats of its own goes, before any work.

    Args:
        reports: `FORMAT=FILE` each.
        formats: Those there are.

    Raises:
        ConfigError: An unknown format, no file, or one format or file twice.
        InputError: A file cannot be written.
    """
    files: dict[str, Path] = {}
    for text in reports or ():
        name, separator, file = text.partition("=")
        if name not in formats or not separator or not file or name in files:
            wanted = [f"{known}=FILE" for known in formats]
            raise ConfigError(
                f"--report: expected {', '.join(wanted[:-1])} or {wanted[-1]}, once each, "
                f"got {text!r}"
            )
        if Path(file) in files.values():
            raise ConfigError(f"--report: {file} is given for two formats")
        files[name] = Path(file)
        check_writable(files[name])
    return files


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


def tell_written(*paths: Path) -> None:
    """Say on stderr which files were written."""
    for path in paths:
        tell(f"bdaudit: wrote {path}")


def results_go_to(sink: JsonSink, reports: ReportSinks | None = None) -> str:
    """Return in words where the results of a run go, for its first line."""
    files = [
        *([] if sink.path is None else [str(sink.path)]),
        *([] if reports is None else reports.files),
    ]
    if sink.to_stdout or (reports is not None and reports.to_stdout):
        files.append("stdout")
    return f"results: {', '.join(files)}" if files else "results: shown here, kept nowhere (--json)"


def show_plan(steps: Steps[Any], results: str) -> None:
    """Say what a run would do, on stdout, and do nothing of it."""
    from bdaudit.auditing.planning import first_plan

    plan = first_plan(steps)
    if plan is not None:
        say("plan:")
        for line in plan.lines():
            say(line)
    say(results)


def check_writable(path: Path) -> None:
    """Make sure that `path` can be written later.

    Raises:
        InputError: Its folder is not there or cannot be written to, or it is a folder itself.
    """
    try:
        _try_to_write(path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{shortened(str(path))}: the folder {shortened(str(path.parent))} cannot be written "
            f"to: {reason}"
        ) from error


def _try_to_write(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file to write")
    if path.exists() and not path.is_file():
        # It would be replaced by a file.
        raise InputError(f"{path}: is a device or a pipe, expected a file to write; - is stdout")
    # Tried, not asked: a full or read-only file system may deny what the permissions allow.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
        pass


def show_record(
    record: AnyDocument, *, sink: JsonSink, quiet: bool, reports: ReportSinks | None = None
) -> None:
    """Write the JSON where it was asked for, show the record, and write the reports.

    It is not shown where stdout is taken, and in one line when `quiet`.
    """
    from bdaudit.records import to_json
    from bdaudit.report.terminal import print_record
    from bdaudit.report.wording import one_line

    sink.write(to_json(record))
    taken = sink.to_stdout or (reports is not None and reports.to_stdout)
    if quiet and not taken:
        say(one_line(record))
    elif not taken:
        print_record(record, stdout_console())
    # Last, for what cannot be written must not keep the answer from being shown.
    if reports is not None:
        reports.write(record)
