"""What a case is, and what every case must hold to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

CANARY = "canary-was-here"
"""A file that hostile code would make."""
SECRET = "s3cret-of-another-file-7f1e"
"""What stands in a file outside of every case's folder, and must appear nowhere."""

REFUSED = frozenset({2, 4})
"""Usage, or an input that cannot be used."""
ANSWERED = frozenset({0, 1, 2, 3, 4})
"""An answer, or a refusal: whatever is promised but an internal error."""
DRAFTED = frozenset({0, 2, 4})

# C0 but tab and line ends, DEL, C1; controls of direction; what no terminal should be sent.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_INTERNAL = ("Traceback (most recent call last)", "internal error", "weights_only=False")


@dataclass(frozen=True)
class Case:
    """One hostile input and the command that meets it.

    Attributes:
        name: Unique.
        kind: What the count is kept by.
        argv: The command's arguments; "{base}" stands for the folder of sound files.
        build: Writes the input into an empty folder, the command's working folder.
        codes: Exit codes that will do.
        settings: Time limits and the like, by their place, for a test that need not wait.
        spare: Whether it runs with the whole corpus alone, as one of very many like it.
    """

    name: str
    kind: str
    argv: tuple[str, ...]
    build: Callable[[Path], object]
    codes: frozenset[int] = REFUSED
    settings: dict[str, float] = field(default_factory=dict)
    spare: bool = False


@dataclass(frozen=True)
class Ran:
    """What became of a case."""

    code: int | str
    cpu_s: float
    grown_bytes: int
    stdout: bytes
    stderr: bytes


def faults(case: Case, ran: Ran, folder: Path, *, most_bytes: int) -> list[str]:
    """Say in words what of the promises was not kept; empty when all was.

    Args:
        case: What was tried.
        ran: What became of it.
        folder: Its working folder, with whatever the command wrote.
        most_bytes: How far its memory may have grown.
    """
    found = []
    if ran.code not in case.codes:
        found.append(f"exit {ran.code} not in {sorted(case.codes)}")
    if ran.grown_bytes > most_bytes:
        found.append(f"memory grew by {ran.grown_bytes / 1e9:.1f} GB")
    for name, content in (("stdout", ran.stdout), ("stderr", ran.stderr)):
        text = content.decode("utf-8", "backslashreplace")
        found += [f"{name}: {mark}" for mark in _INTERNAL if mark in text]
        if control := _CONTROLS.search(text):
            found.append(f"{name}: raw {control[0]!a}")
        if SECRET in text:
            found.append(f"{name}: the secret of another file")
    for path in _below(folder):
        if path.name == CANARY:
            found.append("code in the file was run")
        elif _is_output(path) and SECRET.encode() in path.read_bytes():
            found.append(f"{path.name}: the secret of another file")
    return found


def _is_output(path: Path) -> bool:
    kinds = {".html", ".md", ".sarif", ".xml", ".json"}
    return path.suffix in kinds and path.is_file() and not path.is_symlink()


def _below(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())
