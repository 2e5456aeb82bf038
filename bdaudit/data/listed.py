"""Images listed with their labels in a table: CSV, TSV, JSON lines, `metadata.csv` of a folder.

`metadata.csv` (or `.jsonl`) beside the images is the imagefolder of Hugging Face's `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.columns import (
    ANY_COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Columns,
    choose_column,
    number_labels,
)
from bdaudit.data.folder import GIVEN_CLASSES, files_catalogue
from bdaudit.data.table import is_table, table_catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import LIST_BYTES, is_file, path_inside
from bdaudit.foundation.texts import parse_json, read_text

__all__ = ["LIST_SUFFIXES", "find_listed_folder", "listed_catalogue", "name_in_list", "rows_of"]

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_METADATA = ("metadata.csv", "metadata.jsonl")
_MOST_ROWS = 10_000_000


def find_listed_folder(folder: Path) -> Path | None:
    """Return the `metadata.csv` or `metadata.jsonl` of a folder, `None` without one.

    Raises:
        DataError: There are both.
    """
    found = [folder / name for name in _METADATA if is_file(folder / name)]
    if len(found) > 1:
        raise DataError(f"{folder}: expected one list of its images, got {' and '.join(_METADATA)}")
    return found[0] if found else None


def listed_catalogue(
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
    asked: Columns = ANY_COLUMNS,
) -> Catalogue:
    """Describe images that a table lists, or the rows of a table of numbers.

    Args:
        path: With a row an image: a path, relative to the table's folder, and a label. A `.csv` or
            `.tsv` has its columns' names in the first row, a `.jsonl` an object a line. Without a
            column of paths it is a table of numbers (`table.py`).
        class_names: Names in order of index.
        classes_from: Who gave them.
        asked: Which columns are meant.

    Raises:
        DataError: The table cannot be read, has no column of paths or of labels, or names a file
            outside its folder or one twice.
    """
    where = str(path)
    rows = rows_of(path)
    if not rows:
        raise DataError(f"{where}: expected rows with a path and a label, got none")
    columns = list(rows[0])
    if is_table(path, columns, IMAGE_COLUMNS, asked):
        return table_catalogue(
            path,
            {name: [row.get(name) for row in rows] for name in columns},
            class_names=class_names,
            classes_from=classes_from,
            asked=asked,
            known_paths=IMAGE_COLUMNS,
        )
    notes: list[str] = []
    images = choose_column(columns, IMAGE_COLUMNS, "paths", where, notes, wanted=asked.images)
    rest = [column for column in columns if column != images]
    labels = choose_column(rest, LABEL_COLUMNS, "labels", where, notes, wanted=asked.labels)
    ignored = [column for column in rest if column != labels]
    if ignored:
        notes.append(f"columns that are not read: {', '.join(map(repr, sorted(ignored)[:5]))}")
    paths, seen = [], set()
    for number, row in enumerate(rows, start=1):
        name = row.get(images)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected a path in {images!r} of row {number}")
        place = path_inside(path.parent, name, what="the image", error=DataError)
        if place in seen:
            raise DataError(f"{where}: row {number} lists an image for the second time")
        seen.add(place)
        paths.append(place)
    found = number_labels(
        [row.get(labels) for row in rows],
        where=where,
        class_names=class_names,
        classes_from=classes_from,
    )
    catalogue = files_catalogue(
        paths,
        found.indices,
        names=[_name(place, path.parent) for place in paths],
        class_names=found.class_names,
        source=where,
        root=path.parent,
        notes=(*notes, *found.notes),
        classes_from=found.classes_from,
    )
    return replace(catalogue, has_columns=True)


def name_in_list(table: Path, path: str) -> str:
    """Return the name that an image has in a sample, by its path as the table writes it."""
    place = path_inside(table.parent, path, what="the image", error=DataError)
    return _name(place, table.parent)


def _name(place: Path, folder: Path) -> str:
    return place.relative_to(folder).with_suffix("").as_posix()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a table as text, by the names of their columns.

    Raises:
        DataError: It is no CSV, TSV or JSON lines, or its rows differ in length.
    """
    return _rows_of_json(path) if path.suffix.lower() == ".jsonl" else _rows_of_csv(path)


def _rows_of_csv(path: Path) -> list[dict[str, Any]]:
    text = read_text(
        path, what="a table of images", error=DataError, limit=LIST_BYTES, within=path.parent
    )
    mark = "\t" if path.suffix.lower() == ".tsv" else ","
    first = text.partition("\n")[0]
    if mark == "," and "," not in first and ";" in first:
        mark = ";"
    reader = csv.DictReader(io.StringIO(text), delimiter=mark, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        columns = reader.fieldnames or []
        if len(set(columns)) != len(columns):
            raise DataError(f"{path}: expected columns of different names, got one twice")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}: line {reader.line_num} has more or fewer values than there are "
                    f"columns ({len(columns)})"
                )
            rows.append(row)
            if len(rows) > _MOST_ROWS:
                raise DataError(f"{path}: expected at most {_MOST_ROWS:,} rows")
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV: {error}") from error
    return rows


def _rows_of_json(path: Path) -> list[dict[str, Any]]:
    text = read_text(
        path, what="a table of images", error=DataError, limit=LIST_BYTES, within=path.parent
    )
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, where=f"{path}, line {number}", what="a row", error=DataError)
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: expected an object, got {json.dumps(row)[:40]}"
            )
        rows.append(row)
    return rows
