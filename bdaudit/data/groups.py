"""The group of every image of a sample, from a column beside its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdaudit.data.classes import shown
from bdaudit.data.columns import IMAGE_COLUMNS, Columns, choose_column
from bdaudit.data.listed import LIST_SUFFIXES, find_listed_folder, name_in_list, rows_of
from bdaudit.data.parquet import columns_of_parquet
from bdaudit.data.splits import choose_split_files
from bdaudit.data.table import is_table
from bdaudit.data.table_columns import find_table_folder
from bdaudit.errors import DataError, reads
from bdaudit.foundation.opening import is_folder

__all__ = ["groups_of"]

_MOST_GROUPS = 50


@reads(DataError)
def groups_of(
    data: Path, column: str, names: Sequence[str], *, image_column: str | None = None
) -> tuple[str, ...]:
    """Return the group of each image of a sample.

    Args:
        data: What the sample was read from: a table, a list of images, or a folder of either.
        column: The column of groups; it may be an input of the model, or one that is ignored.
        names: Names of the sample's images.
        image_column: The column of paths, where the user named it.

    Raises:
        DataError: The data have no columns, or none of that name; it holds a single group, more
            than 50, or nothing for an image.
    """
    path = _table_of(data)
    values, keys = _columns(path, column, image_column)
    by_name = dict(zip(keys, values, strict=True))
    groups = tuple(str(by_name[name]).strip() for name in names)
    found = sorted(set(groups))
    if "" in found or "None" in found:
        raise DataError(f"{path}: column {column!r} holds nothing for some rows")
    if not 2 <= len(found) <= _MOST_GROUPS:
        raise DataError(
            f"{path}: expected 2 to {_MOST_GROUPS} groups in column {column!r}, got {len(found)}: "
            f"{shown(found)}; give each row the name of its group (an age group for an age)"
        )
    return groups


def _table_of(data: Path) -> Path:
    if not is_folder(data):
        return data
    if tables := find_table_folder(data):
        return choose_split_files(tables, "test", str(data))[0][0]
    listed = find_listed_folder(data)
    if listed is None:
        raise DataError(
            f"{data}: groups are read from a column of a table or of a list of images "
            "(metadata.csv), and this folder has neither"
        )
    return listed


def _columns(path: Path, column: str, image_column: str | None) -> tuple[list[Any], list[str]]:
    """Return the groups and the names that a sample has for the same rows."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        columns: Mapping[str, Sequence[Any]] = columns_of_parquet(path, [column])
        values = list(columns[column])
        return values, [*map(str, range(len(values)))]
    if suffix not in LIST_SUFFIXES:
        raise DataError(f"{path}: groups are read from a table, {', '.join(LIST_SUFFIXES)}")
    rows = rows_of(path)
    names = list(rows[0]) if rows else []
    if column not in names:
        raise DataError(f"{path}: expected a column {column!r} of groups, got {shown(names)}")
    values = [row.get(column) for row in rows]
    asked = Columns(images=image_column)
    if is_table(path, names, IMAGE_COLUMNS, asked):
        return values, [*map(str, range(len(values)))]
    paths = choose_column(names, IMAGE_COLUMNS, "paths", str(path), [], wanted=image_column)
    return values, [name_in_list(path, str(row.get(paths))) for row in rows]
