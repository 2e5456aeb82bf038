"""Tables of numbers as samples: every row an image of 1 x F, its columns scaled to [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.columns import (
    ANY_COLUMNS,
    LABEL_COLUMNS,
    Columns,
    choose_column,
    number_labels,
)
from bdaudit.data.folder import GIVEN_CLASSES
from bdaudit.data.images import ImageShape
from bdaudit.data.table_columns import (
    COLUMNS_FILE,
    FIXED,
    ColumnsFile,
    TableColumns,
    read_columns_file,
)
from bdaudit.errors import DataError

__all__ = ["is_table", "table_catalogue"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_SLACK = 1e-6
"""How far a scaled value may lie outside [0, 1]: rounding where the table was written."""

MOST_COLUMNS = 65_536
_MOST_NAMED = 5


def is_table(path: Path, columns: Sequence[str], known: Sequence[str], asked: Columns) -> bool:
    """Whether a file holds rows of numbers, and neither images nor their paths.

    Args:
        path: The file.
        columns: Names of its columns.
        known: What a column of images or paths is called.
        asked: Which columns the user named.
    """
    if asked.images is not None:
        return False
    names = {column.strip().casefold() for column in columns}
    return read_columns_file(path) is not None or names.isdisjoint(known)


def table_catalogue(
    path: Path,
    values: Mapping[str, Sequence[Any]],
    *,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
    own_names: Sequence[str] | None = None,
    own_by: str = "",
    asked: Columns = ANY_COLUMNS,
    known_paths: Sequence[str] = (),
) -> Catalogue:
    """Describe the rows of a table.

    Args:
        path: The file; a `columns.toml` beside it says what its columns are.
        values: Its columns by name: numbers, or texts that are numbers, and one of labels.
        class_names: Names in order of index.
        classes_from: Who gave them.
        own_names: Names that the file itself has, likewise.
        own_by: Where in the file.
        asked: Which columns are meant.
        known_paths: What a column of paths is called, for the message where it is no table.

    Raises:
        DataError: A column is missing or not described, a value is no number, out of its range, or
            one that its column cannot hold.
    """
    where = str(path)
    notes: list[str] = []
    file = read_columns_file(path)
    wanted = asked.labels or (None if file is None else file.label)
    names = list(values)
    rest = names if file is None else [n for n in names if n not in file.columns]
    label = choose_column(rest, LABEL_COLUMNS, "labels", where, notes, wanted=wanted)
    inputs = [name for name in names if name != label] if file is None else list(file.columns)
    if file is not None:
        _check_described(file, names, label, where)
    if not 0 < len(inputs) <= MOST_COLUMNS:
        raise DataError(f"{where}: expected 1 to {MOST_COLUMNS:,} columns beside {label!r}")
    if not len(values[label]):
        raise DataError(f"{where}: expected rows, got none")
    numbers = torch.stack(
        [_numbers(values[name], name, where, known_paths) for name in inputs], dim=1
    )
    columns = _columns(file, inputs, numbers, where)
    rows = columns.scale(numbers)
    _check_range(rows, numbers, columns, where, described=file is not None)
    rows = rows.clamp(0.0, 1.0)
    wrong = columns.impossible(rows)
    if wrong is not None:
        raise DataError(f"{where}: {wrong}, as {COLUMNS_FILE} says")
    notes.append(f"{columns.in_words()} ({COLUMNS_FILE if file else 'inferred from the values'})")
    if file is None:
        notes.extend(_note_taken_for_integers(columns))
    found = number_labels(
        values[label],
        where=where,
        class_names=class_names,
        classes_from=classes_from,
        own_names=own_names,
        own_by=own_by,
    )
    shape = (1, 1, len(inputs))

    def read(indices: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        if image_shape is not None and tuple(image_shape) != shape:
            raise DataError(
                f"{where}: expected rows that a model of images {tuple(image_shape)} takes, got "
                f"{len(inputs)} columns, which are images {shape}"
            )
        return rows[indices][:, None, None, :].contiguous(), ()

    return Catalogue(
        labels=torch.tensor(found.indices, dtype=torch.int64),
        names=tuple(map(str, range(len(rows)))),
        class_names=found.class_names,
        source=where,
        read=read,
        notes=(*notes, *found.notes),
        classes_from=found.classes_from,
        has_columns=True,
        columns=columns,
    )


def _note_taken_for_integers(columns: TableColumns) -> Iterator[str]:
    """Say which columns only the values at hand made integers of, and how to say otherwise."""
    names = [n for n, step in zip(columns.names, columns.steps, strict=True) if 0 < step < FIXED]
    if names:
        named = ", ".join(names[:_MOST_NAMED])
        more = "" if len(names) <= _MOST_NAMED else f" and {len(names) - _MOST_NAMED} more"
        yield (
            f"columns that hold nothing but 0 and 1 are taken for integers, which an attack moves "
            f"by 1 or not at all: {named}{more}; where they take other values too, describe all "
            f'columns in {COLUMNS_FILE}, these as kind = "number"'
        )


def _check_described(file: ColumnsFile, names: Sequence[str], label: str, where: str) -> None:
    """Hold the description against the table: no column may be on one side only."""
    described = {*file.columns, *file.ignored, label}
    missing = [name for name in (*file.columns, *file.ignored) if name not in names]
    if missing:
        raise DataError(f"{where}: expected the column {missing[0]!r}, as {COLUMNS_FILE} says")
    extra = [name for name in names if name not in described]
    if extra:
        raise DataError(
            f"{where}: column {extra[0]!r} is not in {COLUMNS_FILE}; describe it there, or name it "
            "under ignored"
        )
    if label in file.columns or set(file.columns) & set(file.ignored):
        raise DataError(f"{where}: {COLUMNS_FILE} names a column for two uses")


def _numbers(values: Sequence[Any], name: str, where: str, known_paths: Sequence[str]) -> Tensor:
    found = torch.empty(len(values), dtype=torch.float64)
    for row, value in enumerate(values):
        if isinstance(value, bool):
            value = int(value)
        text = value.strip() if isinstance(value, str) else None
        if text is not None and _NUMBER.fullmatch(text):
            value = float(text)
        if not isinstance(value, int | float) or not abs(value) < 1e300:
            raise DataError(
                f"{where}: expected a column of paths, called {', '.join(known_paths[:4])} or the "
                f"like, or columns of finite numbers; column {name!r} of row {row + 1} holds "
                f"{value!r:.40}. Name the column of paths (--image-column), or leave that column "
                f"out (ignored, in {COLUMNS_FILE})"
            )
        found[row] = value
    return found


def _columns(
    file: ColumnsFile | None, names: Sequence[str], numbers: Tensor, where: str
) -> TableColumns:
    if file is not None:
        return TableColumns.described(file)
    return TableColumns.inferred(names, numbers)


def _check_range(
    rows: Tensor, numbers: Tensor, columns: TableColumns, where: str, *, described: bool
) -> None:
    outside = ((rows < -_SLACK) | (rows > 1.0 + _SLACK)).nonzero()
    if not len(outside):
        return
    row, place = map(int, outside[0])
    name = columns.names[place]
    said = (
        f"its range in {COLUMNS_FILE} is {columns.low[place]:g} to {columns.high[place]:g}"
        if described
        else f"without a {COLUMNS_FILE} beside the table columns must be scaled to [0, 1]; give "
        "there the ranges that the model was trained with"
    )
    held = float(numbers[row, place])
    raise DataError(f"{where}: column {name!r} of row {row + 1} holds {held:g}, and {said}")
