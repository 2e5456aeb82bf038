"""Names of classes: where they come from, and whether two lists of them agree."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from bdaudit.errors import DataError, reads
from bdaudit.foundation.texts import character_in_words, is_invisible, read_text, visible_form

__all__ = [
    "absent_classes",
    "agree_on_classes",
    "check_class_names",
    "folder_number",
    "look_up_folders",
    "number_folders",
    "read_class_names",
    "shown",
]

_N_SHOWN = 10
_LONGEST_SHOWN = 60
_MOST_DIGITS = 9  # class numbers stay well inside 64 bits
_MOST_NAMES = 1_000_000


@reads(DataError)
def read_class_names(path: Path, *, within: Path | None = None) -> tuple[str, ...]:
    """Read class names, one per line in order of index; blank lines at the end are dropped.

    Args:
        path: The file.
        within: The folder it must lie in, where it was found in one.

    Raises:
        DataError: The file cannot be read, is empty, names a class twice or not at all, two names
            look the same, or one holds a character that nobody sees.
    """
    text = read_text(path, what="class names, one per line", error=DataError, within=within)
    # Only line ends part names: splitlines would also part them at what nobody sees.
    names = tuple(line.strip(" \t") for line in text.rstrip(" \t\n").split("\n"))
    if not names or "" in names or len(set(names)) != len(names):
        raise DataError(
            f"{path}: expected one class name per line, all different, in order of index"
        )
    if len(names) > _MOST_NAMES:
        raise DataError(f"{path}: {len(names):,} class names, more than any model has classes")
    check_class_names(names, str(path))
    return names


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse names that a person cannot tell apart, or that hold what nobody sees.

    Raises:
        DataError: With the place of the first such name.
    """
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        for character in name:
            if is_invisible(character):
                raise DataError(
                    f"{where}: class name {place}, {_short(name)!r}, holds "
                    f"{character_in_words(character)}, which is invisible or looks like a space; "
                    "retype the name"
                )
        form = visible_form(name)
        if form in seen:
            raise DataError(
                f"{where}: class names {seen[form]} and {place} look the same: {_short(name)!r}"
            )
        seen[form] = place


def agree_on_classes(
    given: Sequence[str], given_by: str, own: Sequence[str], own_by: str
) -> str | None:
    """Hold class names that were given against those that something has of its own.

    Args:
        given: Names in order of index; they are the ones that are used.
        given_by: Who says so, for the message.
        own: The other list.
        own_by: Whose.

    Returns:
        A note where the names differ altogether, as translations do; `None` where they are equal.

    Raises:
        DataError: They are not equally many, or some of the same names are at other places.
    """
    first, second = [visible_form(n) for n in given], [visible_form(n) for n in own]
    if first == second:
        return None
    if len(first) != len(second):
        raise DataError(
            f"{given_by} has {len(first)} classes ({shown(given)}), {own_by} has {len(second)} "
            f"({shown(own)}); one of the two belongs to another task"
        )
    places = {name: place for place, name in enumerate(second)}
    for place, name in enumerate(first):
        if places.get(name, place) != place:
            raise DataError(
                f"class {place} is {_short(given[place])!r} by {given_by}, and "
                f"{_short(own[place])!r} by {own_by}, which has {_short(name)!r} as class "
                f"{places[name]}; the two lists must have the same order"
            )
    different = [place for place, name in enumerate(first) if name != second[place]]
    return (
        f"{len(different)} of {len(first)} classes have other names in {given_by} than in "
        f"{own_by}, for instance {_short(given[different[0]])!r} for "
        f"{_short(own[different[0]])!r}: taken to be the same classes"
    )


def look_up_folders(
    folders: Sequence[str], class_names: Sequence[str], where: str, *, what: str = "class folder"
) -> Mapping[str, int]:
    """Map class folders to their places in a list of names, by what can be seen of both.

    Args:
        folders: Their names.
        class_names: In order of index.
        where: For messages.
        what: What is looked up, for messages.

    Raises:
        DataError: A folder is not in the list, or two folders look the same.
    """
    places = {visible_form(name): place for place, name in enumerate(class_names)}
    indices: dict[str, int] = {}
    by_form: dict[str, str] = {}
    for folder in folders:
        form = visible_form(folder)
        if form not in places:
            near = difflib.get_close_matches(form, places, n=1)
            raise DataError(
                f"{where}: {what} {_short(folder)!r} is not among the {len(class_names)} "
                "class names" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if form in by_form:
            raise DataError(
                f"{where}: {what}s {_short(by_form[form])!r} and {_short(folder)!r} look the same"
            )
        by_form[form] = folder
        indices[folder] = places[form]
    return indices


def number_folders(
    folders: Sequence[str], where: str
) -> tuple[Mapping[str, int], Sequence[str] | None, tuple[str, ...]]:
    """Give class folders their index where no list of names does.

    Folders that are all numbers are their own index; others are numbered in sorted order.

    Args:
        folders: All of them, sorted, the empty ones too: those keep their place.
        where: The folder they are in, for messages.

    Returns:
        The indices, the class names (`None` where numbers are all there is), and notes where
        another common way to number them gives other indices.

    Raises:
        DataError: Two folders are the same number, or look the same, or a number is huge.
    """
    numbers = [folder_number(name, where) for name in folders]
    known = [number for number in numbers if number is not None]
    if len(known) == len(folders):
        if len(set(known)) != len(known):
            raise DataError(f"{where}: two class folders are the same number: {shown(folders)}")
        notes: tuple[str, ...] = ()
        if known != list(range(len(known))):
            odd = next(place for place, number in enumerate(known) if number != place)
            notes = (
                f"class folders are their own index: {folders[odd]!r} is class {known[odd]}; "
                f"numbered by sorted names, as torchvision's ImageFolder does, it would be class "
                f"{odd}",
            )
        return dict(zip(folders, known, strict=True)), None, notes
    look_up_folders(folders, folders, where)
    return {name: index for index, name in enumerate(folders)}, folders, _natural_order(folders)


def _natural_order(folders: Sequence[str]) -> tuple[str, ...]:
    def natural(name: str) -> list[tuple[int, int, str]]:
        parts: list[tuple[int, int, str]] = []
        digits = ""
        for character in f"{name}\0":
            if character.isascii() and character.isdecimal():
                digits += character
                continue
            if digits:
                parts.append((0, int(digits), ""))
                digits = ""
            parts.append((1, 0, character))
        return parts

    for index, (name, other) in enumerate(zip(folders, sorted(folders, key=natural), strict=True)):
        if name != other:
            return (
                f"class folders are numbered by their sorted names, so {_short(name)!r} is class "
                f"{index}; counted by the numbers in the names it would be {_short(other)!r}",
            )
    return ()


def folder_number(name: str, where: str) -> int | None:
    """Read a folder's name as a number, `None` where it is not one.

    Raises:
        DataError: The number is too large to be a class.
    """
    if not (name.isascii() and name.isdecimal()):
        return None
    digits = name.lstrip("0") or "0"
    if len(digits) > _MOST_DIGITS:
        raise DataError(
            f"{where}: class folder {_short(name)!r} is a number of {len(digits)} digits; expected "
            "the index of a class"
        )
    return int(digits)


def absent_classes(
    labels: Tensor, num_classes: int, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return which of the classes no label is of, by name where there are names."""
    present = set(labels.tolist())
    missing = [index for index in range(num_classes) if index not in present]
    if class_names is None:
        return tuple(map(str, missing))
    return tuple(f"{class_names[index]} (class {index})" for index in missing)


def shown(names: Sequence[str]) -> str:
    """List the first names, and say that there are more."""
    listed = ", ".join(_short(name) for name in names[:_N_SHOWN])
    return listed + (f", and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else "")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
