"""The one way to open a file: a regular one, of limited size, where it says it is.

A path that a user names, or that stands inside a file, may be anything: a pipe that nobody writes
to, a device that never ends, a sparse file of terabytes, a ring of links, a name that is no name.
Everything that reads such a file opens it here, so that each of these is an `InputError` which says
what was expected and what came, and none is a hang, a full memory or an internal error.

`open_file` and `read_bytes` read, and so does `file_digests.digest_file`. `check_file` is for
libraries that want a path and open it themselves. `is_file` and `is_folder` ask. `path_inside`
follows a name that stands inside a file. The limits by kind of file are the constants below;
docs/limits.md lists them.
"""

from __future__ import annotations

import difflib
import errno
import io
import os
import stat
import time
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO, cast

from bdaudit.errors import InputError
from bdaudit.plain_text import shortened

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "LIST_BYTES",
    "MODEL_BYTES",
    "PICTURE_BYTES",
    "RECORD_BYTES",
    "SAMPLE_BYTES",
    "SETTINGS_BYTES",
    "SOURCE_BYTES",
    "TENSOR_BYTES",
    "TIME_LIMIT_S",
    "check_file",
    "demand_there",
    "in_bytes",
    "is_file",
    "is_folder",
    "open_file",
    "path_inside",
    "read_bytes",
    "shown",
    "why_not",
]

SETTINGS_BYTES = 1 << 20
"""Settings written by hand: project files, policies, trigger files, manifests, model settings."""
SOURCE_BYTES = 4 << 20
"""Python files that the user named."""
LIST_BYTES = 16 << 20
"""Lists: class names, annotations, labels by file."""
PICTURE_BYTES = 64 << 20
"""One encoded picture."""
RECORD_BYTES = 64 << 20
"""Records and other JSON that bdaudit writes; signatures."""
TENSOR_BYTES = 256 << 20
"""The tensors of a trigger or of a perturbation."""
SAMPLE_BYTES = 16 << 30
"""One file of images or labels: arrays, batches, archives."""
MODEL_BYTES = 64 << 30
"""One file of a model."""

TIME_LIMIT_S = 600.0
"""How long one file may take to be read, in seconds."""

_CHUNK_BYTES = 1 << 20
_LONGEST_SHOWN = 300
_MOST_NAMES = 2000
"""Of a folder that are looked at for a name like that of a missing file."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(
    path: str | Path,
    *,
    limit: int,
    what: str,
    error: type[InputError] = InputError,
    within: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> BinaryIO:
    """Open a file to read its bytes.

    It is looked at before it is opened and again once it is open, so what is read is what was
    checked. It is opened without waiting, and the stream ends where the file ended when it was
    opened, even if somebody writes on.

    Args:
        path: The file. A link is followed.
        limit: The most bytes it may have; the holes of a sparse file count.
        what: What it should be, for the message: "a policy".
        error: What to raise.
        within: The folder that it must lie in once every link is followed, for a path that stands
            inside a file or that was found by listing a folder.
        time_limit_s: How long reading from the stream may go on, in seconds from now.

    Returns:
        A stream, buffered and seekable; the caller closes it.

    Raises:
        InputError: There is no such file, it is not a regular file, is too large, lies outside
            `within`, may not be read, or its name is no name; of the class `error`. Reading from
            the stream raises it when the file takes longer than `time_limit_s`, cannot be read, or
            has become shorter.
    """
    path = Path(path)
    where = _locate(path, what, error, within)
    try:
        _demand_regular(path, where.stat(), limit, what, error)
        # Not waiting for a pipe's writer: the file may have been exchanged since it was looked at.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        if within is not None:  # every link was followed: one that is here now was put in since
            flags |= getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(where, flags)
        try:
            size = _demand_regular(path, os.fstat(handle), limit, what, error)
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as failure:
        raise _refusal(path, what, error, failure) from failure
    raw = BoundedFile(handle, path, size, what, error, time.monotonic() + time_limit_s)
    return cast(BinaryIO, io.BufferedReader(raw, _CHUNK_BYTES))


def demand_there(path: Path, *, what: str, error: type[InputError] = InputError) -> None:
    """Refuse a name at which there is nothing at all.

    Raises:
        InputError: There is neither file nor folder; of the class `error`, worded as `open_file`
            words it. What is wrong with something that is there is said when it is opened.
    """
    try:
        path.stat()
    except FileNotFoundError as failure:
        raise _refusal(path, what, error, failure) from failure
    except (OSError, ValueError):
        return


def read_bytes(
    path: str | Path,
    *,
    limit: int,
    what: str,
    error: type[InputError] = InputError,
    within: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> bytes:
    """Read a whole file; arguments and errors are those of `open_file`."""
    with open_file(
        path, limit=limit, what=what, error=error, within=within, time_limit_s=time_limit_s
    ) as stream:
        return stream.read()


def check_file(
    path: str | Path,
    *,
    limit: int,
    what: str,
    error: type[InputError] = InputError,
    within: Path | None = None,
) -> int:
    """Check a file as `open_file` does, for a library that opens the path itself.

    Prefer `open_file`: what the library opens a moment later may be another file.

    Returns:
        Its size in bytes.

    Raises:
        InputError: As `open_file`.
    """
    with open_file(path, limit=limit, what=what, error=error, within=within) as stream:
        return os.fstat(stream.fileno()).st_size


def is_file(path: str | Path) -> bool:
    """Return whether a regular file is there, whatever the name; a ring of links is none."""
    return _is(path, stat.S_ISREG)


def is_folder(path: str | Path) -> bool:
    """Return whether a folder is there, whatever the name."""
    return _is(path, stat.S_ISDIR)


def _is(path: str | Path, kind: object) -> bool:
    try:
        return bool(kind(Path(path).stat().st_mode))  # type: ignore[operator]
    except (OSError, ValueError):  # ValueError: a name with NUL or lone surrogates
        return False


def path_inside(
    folder: Path, name: str, *, what: str, error: type[InputError] = InputError
) -> Path:
    """Follow a name that stands inside a file, which may not leave `folder`.

    Args:
        folder: The folder of the file that names it.
        name: A relative path without `..`.
        what: What it should be, for the message.
        error: What to raise.

    Returns:
        `folder / name`. It need not be there; whoever opens it passes `within=folder`.

    Raises:
        InputError: The name is empty, absolute, holds `..`, is no name, or leads out of `folder`
            over a link; of the class `error`.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute() or PureWindowsPath(name).drive:
        raise error(
            f"{shown(name)}: outside the folder that it must be in ({shown(folder)}); put "
            f"{what} there and write a relative path without '..'"
        )
    _locate(folder / name, what, error, folder)
    return folder / name


def shown(path: str | Path) -> str:
    """Write a path for a message, shortened in the middle where it would fill the screen."""
    return shortened(str(path), _LONGEST_SHOWN)


def in_bytes(number: int) -> str:
    """Write a number of bytes for a message: "512 bytes", "1 MiB", "2.5 GiB"."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << power:
            return f"{number / (1 << power):.4g} {unit}"
    return f"{number} bytes"


def _locate(path: Path, what: str, error: type[InputError], within: Path | None) -> Path:
    """Refuse what is no name; follow every link where the file must lie in a folder."""
    text = str(path)
    if "\0" in text:
        raise error(f"{shown(path)!r}: expected {what}, got a name with a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise error(
            f"{shown(path)!a}: expected {what}, got a name that is not valid UTF-8; rename it"
        ) from failure
    if within is None:
        return path
    # realpath neither fails on a ring of links, as Path.resolve does, nor on a missing file.
    found, folder = Path(os.path.realpath(path)), Path(os.path.realpath(within))
    if not found.is_relative_to(folder):
        raise error(
            f"{shown(path)}: leads out of {shown(within)} over a link or '..'; copy {what} into it"
        )
    return found


def _demand_regular(
    path: Path, facts: os.stat_result, limit: int, what: str, error: type[InputError]
) -> int:
    if not stat.S_ISREG(facts.st_mode):
        kind = next((name for test, name in _KINDS if test(facts.st_mode)), "something else")
        raise error(f"{shown(path)}: expected {what}, a regular file, got {kind}")
    if facts.st_size > limit:
        raise error(
            f"{shown(path)}: expected {what} of at most {in_bytes(limit)}, "
            f"got {in_bytes(facts.st_size)}"
        )
    return facts.st_size


def _refusal(
    path: Path, what: str, error: type[InputError], failure: OSError | ValueError
) -> InputError:
    if not isinstance(failure, OSError):
        return error(f"{shown(path)!a}: expected {what}: {failure}")
    return error(f"{shown(path)}: expected {what}: {why_not(path, failure)}")


def why_not(path: Path, failure: OSError) -> str:
    """Say in words why a file could not be opened; of a missing one, which name is near its own."""
    if failure.errno == errno.ELOOP:
        return "its links lead in a ring, or it became a link while it was opened"
    if failure.errno == errno.ENAMETOOLONG:
        return f"its name is too long ({len(str(path))} characters)"
    reason = failure.strerror or str(failure)
    near = _near_name(path) if failure.errno == errno.ENOENT else None
    return reason if near is None else f"{reason}; did you mean {shown(near)}?"


def _near_name(path: Path) -> Path | None:
    """Return the file or folder beside a missing one that is called most like it."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return path.with_name(near[0]) if near else None


class BoundedFile(io.FileIO):
    """A file that ends where it ended when it was opened, and that may not take for ever."""

    def __init__(
        self,
        handle: int,
        path: Path,
        size: int,
        what: str,
        error: type[InputError],
        deadline: float,
    ) -> None:
        super().__init__(handle, "rb")
        self._path = path
        self._size = size
        self._what = what
        self._error = error
        self._deadline = deadline

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into `buffer`, no further than the end."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._left())
        if wanted == 0:
            return 0
        try:
            got = super().readinto(view[:wanted]) or 0
        except OSError as failure:
            raise _refusal(self._path, self._what, self._error, failure) from failure
        self._demand_some(got)
        return got

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or all that is left if that is fewer or `size` is negative."""
        left = self._left()
        wanted = left if size is None or size < 0 else min(size, left)
        parts = []
        while wanted:
            try:
                # At once, for one copy in memory; the system may give less at a time.
                part = super().read(wanted) or b""
            except OSError as failure:
                raise _refusal(self._path, self._what, self._error, failure) from failure
            self._demand_some(len(part))
            parts.append(part)
            wanted -= len(part)
            self._left()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read(-1)

    def _left(self) -> int:
        if time.monotonic() > self._deadline:
            raise self._error(f"{shown(self._path)}: took too long to read")
        return max(0, self._size - self.tell())

    def _demand_some(self, got: int) -> None:
        if not got:
            raise self._error(
                f"{shown(self._path)}: expected {self._what} of {in_bytes(self._size)}; it became "
                "shorter while it was read"
            )
