"""Tables on a terminal in which no number and no name is ever cut.

What does not fit is folded where it is text, and what then still does not fit goes, whole columns
at a time, into a second table below that begins with the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["Column", "FittedTable"]

_GAP = 2
_LEAST_NAME = 12
"""Columns of the terminal that a name is folded into before the table is split."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Above it.
        text: Whether it holds text, which is set to the left and may be folded. Numbers are set to
            the right and stay whole.
        spare: Whether it repeats in a picture what another column says in a number, and so may be
            left out where there is no room.
    """

    heading: str
    text: bool = False
    spare: bool = False


class FittedTable:
    """Rows of one kind, drawn as wide as the console allows.

    Args:
        columns: The first names the rows and is repeated where the table is split.
    """

    def __init__(self, *columns: Column | str) -> None:
        self._columns = [Column(c) if isinstance(c, str) else c for c in columns]
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: Text | str, style: str = "") -> None:
        """Add a row with a cell for each column."""
        assert len(cells) == len(self._columns)
        made = [cell.copy() if isinstance(cell, Text) else Text(cell) for cell in cells]
        for cell in made:
            if style:
                cell.stylize(style)
        self._rows.append(made)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it in one table, or in as many as the width asks for."""
        for place, (indices, widths) in enumerate(self._blocks(options.max_width)):
            if place:
                yield Text("")
            yield self._table(indices, widths)

    def _table(self, indices: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
        for index, width in zip(indices, widths, strict=True):
            column = self._columns[index]
            left = column.text or index == 0
            justify = "left" if left else "right"
            table.add_column(column.heading, justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
        for row in self._rows:
            table.add_row(*(row[index] for index in indices))
        return table

    def _blocks(self, room: int) -> Iterator[tuple[list[int], list[int]]]:
        """Share the columns out over as few tables as hold them whole."""
        whole = [self._width(k) for k in range(len(self._columns))]
        least = [self._least(k) for k in range(len(self._columns))]
        kept = list(range(len(self._columns)))
        if _total(whole) > room:
            if _total(least) > room:
                kept = [k for k in kept if not self._columns[k].spare]
            if _total([least[k] for k in kept]) > room:
                yield from self._split(room, kept, whole, least)
                return
        yield kept, _grow([least[k] for k in kept], [whole[k] for k in kept], room)

    def _split(
        self, room: int, kept: Sequence[int], whole: Sequence[int], least: Sequence[int]
    ) -> Iterator[tuple[list[int], list[int]]]:
        name, *others = kept
        block: list[int] = []
        for index in [*others, None]:
            wanted = [least[k] for k in (name, *block, *(() if index is None else (index,)))]
            if block and (index is None or _total(wanted) > room):
                found = [name, *block]
                narrowest = [min(least[k], room - _GAP - 1) for k in found]
                if len(found) == 2:  # a single cell wider than the room is folded, never cut
                    narrowest[1] = min(narrowest[1], max(room - narrowest[0] - _GAP, 1))
                yield found, _grow(narrowest, [whole[k] for k in found], room)
                block = []
            if index is not None:
                block.append(index)

    def _width(self, index: int) -> int:
        cells = [cell_len(row[index].plain) for row in self._rows]
        return max([cell_len(self._columns[index].heading), *cells], default=1)

    def _least(self, index: int) -> int:
        """Columns that it needs at least: numbers whole, text and headings by their words."""
        column, heading = self._columns[index], self._columns[index].heading
        words = max(map(cell_len, heading.split()), default=1)
        cells = max((cell_len(row[index].plain) for row in self._rows), default=1)
        if (index == 0 or column.text) and not column.spare:  # a picture is whole or not there
            cells = min(cells, _LEAST_NAME)
        return max(words, cells, 1)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _grow(least: Sequence[int], whole: Sequence[int], room: int) -> list[int]:
    """Give the room that is left, from the left, to columns that would use it."""
    widths, left = list(least), room - _total(least)
    for place, (now, wanted) in enumerate(zip(least, whole, strict=True)):
        more = min(max(wanted - now, 0), max(left, 0))
        widths[place] += more
        left -= more
    return widths
