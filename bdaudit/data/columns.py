"""From a column of labels, numbers or names, to the index of each image's class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bdaudit.data.classes import check_class_names, folder_number, look_up_folders, shown
from bdaudit.errors import DataError

__all__ = [
    "ANY_COLUMNS",
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "ColumnLabels",
    "Columns",
    "choose_column",
    "number_labels",
]

IMAGE_COLUMNS = ("file_name", "filename", "image", "image_path", "path", "filepath", "file", "img")
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
    "fine_label",
    "species",
    "y",
)
"""What columns of paths and of labels are called, in any case; the first that is there counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table the user means, by their names.

    Attributes:
        images: The column of images, or of their paths; `None` for the one that is called so.
        labels: The column of labels, likewise.
    """

    images: str | None = None
    labels: str | None = None

    def in_words(self) -> str:
        """Name what was given, for a message."""
        given = {"image_column": self.images, "label_column": self.labels}
        return ", ".join(f"{name} {value!r:.80}" for name, value in given.items() if value)


ANY_COLUMNS = Columns()
"""What a table is read by where nobody says anything: the names of its columns."""


@dataclass(frozen=True, slots=True)
class ColumnLabels:
    """Labels as indices.

    Attributes:
        indices: One an image.
        class_names: In order of index, `None` where numbers are all there is.
        classes_from: Who gave the names.
        notes: What was guessed.
    """

    indices: list[int]
    class_names: tuple[str, ...] | None
    classes_from: str
    notes: tuple[str, ...] = ()


def choose_column(
    columns: Sequence[str],
    known: Sequence[str],
    what: str,
    where: str,
    notes: list[str],
    *,
    wanted: str | None = None,
) -> str:
    """Find the column of paths, or of labels, by its name.

    Args:
        columns: Their names.
        known: What such a column is usually called.
        what: What it holds, for messages.
        where: The table, for messages.
        notes: Takes which others there are.
        wanted: The name that the user gave, which alone counts.

    Raises:
        DataError: None is called so.
    """
    if wanted is not None:
        if wanted not in columns:
            raise DataError(
                f"{where}: expected a column {wanted!r:.80} of {what}, as was asked for, got the "
                f"columns {shown([str(column) for column in columns]) or '(none)'}"
            )
        return wanted
    by_name = {column.strip().casefold(): column for column in columns}
    found = [by_name[name] for name in known if name in by_name]
    if not found:
        raise DataError(
            f"{where}: expected a column of {what}, called {', '.join(known[:4])} or the like, got "
            f"the columns {shown([str(column) for column in columns]) or '(none)'}; name it "
            "(--label-column, --image-column)"
        )
    if len(found) > 1:
        notes.append(f"took {what} from column {found[0]!r}, not from {shown(found[1:])}")
    return found[0]


def number_labels(
    values: Sequence[Any],
    *,
    where: str,
    class_names: Sequence[str] | None,
    classes_from: str,
    own_names: Sequence[str] | None = None,
    own_by: str = "",
) -> ColumnLabels:
    """Give each label its index.

    Numbers are indices themselves. Names are looked up among those that are known, and else
    numbered in sorted order, as loaders of class folders do.

    Args:
        values: Numbers, or texts that are numbers or names; one an image.
        where: For messages.
        class_names: Names that somebody gave, in order of index.
        classes_from: Who.
        own_names: Names that the file itself has, in order of index.
        own_by: Where in the file.

    Raises:
        DataError: A label is missing, neither a number nor a name, or not among the names.
    """
    known = class_names if class_names is not None else own_names
    known_by = classes_from if class_names is not None else own_by
    indices: list[int] = []
    texts: list[str] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, bool) or value is None or value == "":
            raise DataError(f"{where}: row {row} has no label; remove the row or label it")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int | str):
            raise DataError(
                f"{where}: expected a number or a name for the label of row {row}, got a "
                f"{type(value).__name__}"
            )
        texts.append(str(value).strip())
    numbers = [folder_number(text, where) for text in texts]
    if all(number is not None for number in numbers) and set(texts).isdisjoint(known or ()):
        indices = [number for number in numbers if number is not None]
        return ColumnLabels(indices, None if known is None else tuple(known), known_by)
    names = sorted(set(texts))
    if known is not None:
        places = look_up_folders(names, known, where)
        return ColumnLabels([places[text] for text in texts], tuple(known), known_by)
    check_class_names(names, where)
    places = {name: place for place, name in enumerate(names)}
    note = f"classes are numbered by their sorted names: {shown(names)}"
    return ColumnLabels([places[text] for text in texts], tuple(names), "its labels", (note,))
