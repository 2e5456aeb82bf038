"""What the columns of a table are: which numbers, integers, one-hot, and on which scale.

A table's rows reach a model as images of 1 x F with every column in [0, 1]. How its columns get
there must be what the model was trained with, so it is either said in a file beside the table,
`columns.toml`, or the columns are in [0, 1] already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from bdaudit.errors import DataError
from bdaudit.foundation.opening import is_file
from bdaudit.foundation.texts import read_toml

__all__ = [
    "COLUMNS_FILE",
    "FIXED",
    "ColumnsFile",
    "TableColumns",
    "columns_file_of",
    "find_table_folder",
    "read_columns_file",
]

COLUMNS_FILE = "columns.toml"
"""What describes the tables of its folder."""

_TEXT_TABLES = (".csv", ".tsv", ".jsonl")
_TABLES = (*_TEXT_TABLES, ".parquet")

FIXED = float("inf")
"""The step of a column that cannot change by itself, as of a one-hot group."""

_ON_GRID = 1e-4
"""How far from a multiple of its step a value may be, in steps: rounding of float32."""


class ColumnEntry(BaseModel):
    """One column, as `columns.toml` describes it.

    Attributes:
        kind: `number`; `integer`, which takes multiples of `step` from the low end of its range
            only; or `one-hot`, of whose `group` exactly one column is 1 in every row.
        range: What 0 and 1 on the model's scale are in the table.
        step: Of integers.
        group: Name of a one-hot group.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["number", "integer", "one-hot"] = "number"
    range: Annotated[tuple[float, float], Field(default=(0.0, 1.0))]
    step: Annotated[float, Field(default=1.0, gt=0.0, allow_inf_nan=False)]
    group: str | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> ColumnEntry:
        low, high = self.range
        if not -1e300 < low < high < 1e300:
            raise ValueError(f"range: expected [low, high] with low below high, got {[low, high]}")
        if (self.kind == "one-hot") != (self.group is not None):
            raise ValueError("group: expected of columns of kind 'one-hot', and of no others")
        if self.kind == "one-hot" and self.range != (0.0, 1.0):
            raise ValueError("range: a one-hot column holds 0 or 1 and has none")
        if "step" in self.model_fields_set and self.kind != "integer":
            raise ValueError("step: only of columns of kind 'integer'")
        levels = (high - low) / self.step
        if self.kind == "integer" and (levels < 0.5 or abs(levels - round(levels)) > _ON_GRID):
            raise ValueError(f"range: {[low, high]} is no whole number of steps of {self.step:g}")
        return self


class ColumnsFile(BaseModel):
    """All of `columns.toml`.

    Attributes:
        label: The column of labels; the one that is called so by default.
        ignored: Columns that are no input of the model.
        columns: The model's inputs by name, in the order in which it takes them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = None
    ignored: tuple[str, ...] = ()
    columns: dict[str, ColumnEntry] = Field(min_length=1)


def columns_file_of(table: Path) -> Path | None:
    """Return where the columns of a table are described; `None` of any other file."""
    path = table.parent / COLUMNS_FILE
    return path if table.suffix.lower() in _TABLES and is_file(path) else None


def find_table_folder(folder: Path) -> tuple[Path, ...]:
    """Return the tables of a folder that describes their columns; none of any other."""
    if not is_file(folder / COLUMNS_FILE):
        return ()
    return tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in _TEXT_TABLES))


def read_columns_file(table: Path) -> ColumnsFile | None:
    """Read the description beside a table; `None` where there is none.

    Raises:
        DataError: It is no TOML, has unknown keys, or contradicts itself.
    """
    path = columns_file_of(table)
    if path is None:
        return None
    try:
        return ColumnsFile.model_validate(read_toml(path, what="columns", error=DataError))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "columns"
        raise DataError(f"{path}: {where}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class TableColumns:
    """The columns of a table, in the order of the model's inputs.

    Attributes:
        names: Their names.
        low: What 0 on the model's scale is in the table.
        high: What 1 is.
        steps: On the model's scale: 0 of a number, which may change by any amount; the step of an
            integer; `FIXED` of a one-hot column.
        groups: Places of the columns of each one-hot group.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    steps: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def described(cls, file: ColumnsFile) -> TableColumns:
        """Take what a file says."""
        entries = list(file.columns.values())
        groups: dict[str, list[int]] = {}
        for place, entry in enumerate(entries):
            if entry.group is not None:
                groups.setdefault(entry.group, []).append(place)
        for name, places in groups.items():
            if len(places) < 2:
                raise DataError(
                    f"{COLUMNS_FILE}: one-hot group {name!r}: expected two columns or more"
                )
        return cls(
            names=tuple(file.columns),
            low=tuple(entry.range[0] for entry in entries),
            high=tuple(entry.range[1] for entry in entries),
            steps=tuple(_step(entry) for entry in entries),
            groups=tuple(map(tuple, groups.values())),
        )

    @classmethod
    def inferred(cls, names: Sequence[str], values: Tensor) -> TableColumns:
        """Take columns in [0, 1] as they are.

        A column of nothing but 0 and 1 is an integer; several in a row that share the part of
        their names before "=", one of them 1 in every row, are a one-hot group. All others are
        numbers: where that is not so, a `columns.toml` must say it.

        Args:
            names: Of the columns.
            values: (N, F).
        """
        binary = ((values == 0) | (values == 1)).all(dim=0).tolist()
        steps = [1.0 if only else 0.0 for only in binary]
        groups = []
        shared = [(name.partition("=")[0] if "=" in name else None) for name in names]
        for prefix, found in groupby(range(len(names)), key=shared.__getitem__):
            places = tuple(found)
            if prefix is None or len(places) < 2 or not all(binary[k] for k in places):
                continue
            if bool((values[:, list(places)].sum(dim=1) == 1).all()):
                groups.append(places)
                for place in places:
                    steps[place] = FIXED
        n = len(names)
        return cls(tuple(names), (0.0,) * n, (1.0,) * n, tuple(steps), tuple(groups))

    @property
    def bound(self) -> bool:
        """Whether any column cannot take every value in [0, 1]."""
        return any(step > 0.0 for step in self.steps)

    def scale(self, values: Tensor) -> Tensor:
        """Bring values (N, F) of the table, float64, to the model's scale, float32."""
        low, high = torch.tensor(self.low).double(), torch.tensor(self.high).double()
        return ((values - low) / (high - low)).float()

    def scaled(self, name: str, value: float) -> tuple[int, float]:
        """Return the place of a column and what a value of the table is on the model's scale.

        Raises:
            DataError: There is no such column, or the value is outside its range.
        """
        if name not in self.names:
            raise DataError(f"expected one of the columns {', '.join(self.names)}, got {name!r}")
        place = self.names.index(name)
        found = (value - self.low[place]) / (self.high[place] - self.low[place])
        if not 0.0 <= found <= 1.0:
            raise DataError(
                f"column {name!r}: expected a value from {self.low[place]:g} to "
                f"{self.high[place]:g}, got {value:g}"
            )
        return place, found

    def impossible(self, rows: Tensor) -> str | None:
        """Say what in rows (N, F) on the model's scale no row of such a table can hold.

        `None` where all could be.
        """
        for place, step in enumerate(self.steps):
            if step > 0.0:
                width = 1.0 if step == FIXED else step
                steps = rows[:, place].double() / width
                off = ((steps - steps.round()).abs() > _ON_GRID).nonzero()
                if len(off):
                    row = int(off[0])
                    return (
                        f"column {self.names[place]!r} of row {row + 1} is "
                        f"{float(rows[row, place]):.6g} on the scale of the model, which is no "
                        f"multiple of its step {width:.6g}"
                    )
        for group in self.groups:
            sums = rows[:, list(group)].double().sum(dim=1)
            off = ((sums - 1.0).abs() > _ON_GRID).nonzero()
            if len(off):
                names = ", ".join(self.names[place] for place in group)
                return f"row {int(off[0]) + 1}: expected one 1 among the one-hot columns {names}"
        return None

    def digest(self) -> Mapping[str, Tensor]:
        """Return what a digest over the data must cover beside rows and labels."""
        if not self.bound:
            return {}
        belongs = torch.zeros(len(self.steps))
        for number, group in enumerate(self.groups, start=1):
            belongs[list(group)] = number
        return {"steps": torch.tensor(self.steps), "groups": belongs}

    def in_words(self) -> str:
        """Describe the columns for the record."""
        integers = sum(0.0 < step < FIXED for step in self.steps)
        numbers = sum(step == 0.0 for step in self.steps)
        return (
            f"{len(self.names)} columns: {numbers} numbers, {integers} integers, "
            f"{len(self.groups)} one-hot groups"
        )


def _step(entry: ColumnEntry) -> float:
    if entry.kind == "number":
        return 0.0
    if entry.kind == "one-hot":
        return FIXED
    return entry.step / (entry.range[1] - entry.range[0])
