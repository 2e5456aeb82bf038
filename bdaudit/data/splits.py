"""Which part of a data set in several parts is read, by the parts' names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bdaudit.errors import DataError

__all__ = ["choose_split", "choose_split_files", "choose_split_name", "note_of_split", "split_of"]

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
_HELD_OUT = ("test", "validation")
_LETTERS = re.compile(r"[A-Za-z]+")

_Entry = TypeVar("_Entry")


def split_of(name: str) -> str | None:
    """Return the split that a folder's or a file's name stands for, `None` for any other."""
    return _SPLITS.get(name.lower())


def choose_split_name(names: list[str], split: str, where: str) -> str:
    """Choose among parts, all named for splits: the test part, else the validation part.

    Args:
        names: What the parts are called.
        split: "test" for what is held out, or "train".
        where: For messages.

    Raises:
        DataError: There is no such part, or two of it.
    """
    for wanted in _HELD_OUT if split == "test" else ("train",):
        found = [name for name in names if split_of(name) == wanted]
        if len(found) > 1:
            raise DataError(f"{where}: expected one {wanted} part, got {', '.join(found)}")
        if found:
            return found[0]
    raise DataError(
        f"{where}: expected a part called test or validation, got {', '.join(sorted(names))}; name "
        "the part to read itself"
        if split == "test"
        else f"{where}: expected a part called train, got {', '.join(sorted(names))}"
    )


def choose_split(
    entries: Mapping[tuple[str, ...], _Entry], split: str, where: str
) -> tuple[dict[tuple[str, ...], _Entry], tuple[str, ...]]:
    """Keep the entries of one split, where the first parts of their names are all splits.

    Args:
        entries: By the parts of their names.
        split: "test" or "train".
        where: For messages.

    Returns:
        The entries below that part, and a note on the choice; all of them, where the names are of
        something else.

    Raises:
        DataError: There is no such part.
    """
    names = sorted({parts[0] for parts in entries})
    if not names or any(split_of(name) is None for name in names):
        return dict(entries), ()
    chosen = choose_split_name(names, split, where)
    kept = {parts[1:]: entry for parts, entry in entries.items() if parts[0] == chosen}
    return kept, (note_of_split(chosen, names),)


def note_of_split(chosen: str, names: Iterable[str]) -> str:
    """Say which of several parts was read."""
    others = [name for name in sorted(names) if name != chosen]
    return f"read the part {chosen!r}" + (f", not {', '.join(map(repr, others))}" if others else "")


def choose_split_files(
    files: Sequence[Path], split: str, where: str
) -> tuple[list[Path], tuple[str, ...]]:
    """Keep the files of one split, where all their names begin with one ("test-00000.tar").

    Returns:
        The files in order, and a note on the choice; arguments and errors are those of
        `choose_split`.
    """
    kept, notes = choose_split({(_leading(f.name), f.name): f for f in files}, split, where)
    return sorted(kept.values()), notes


def _leading(name: str) -> str:
    match = _LETTERS.match(name)
    return match[0] if match and split_of(match[0]) is not None else ""
