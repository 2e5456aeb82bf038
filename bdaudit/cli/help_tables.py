"""The help of a command, laid out so that no option's name and no default is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bdaudit.report.console import VisibleConsole

__all__ = ["HelpConsole"]

_FRAME = 4
"""Columns that a panel's border and padding take."""
_GAP = 2
_LEAST_HELP = 40
"""Columns of help text beside the names, below which name and type stand in one column."""
_MOST_NAME = 30


class HelpConsole(VisibleConsole):
    """A console that lays typer's tables of options out anew where they would be cut.

    typer gives each kind of name a column of its own and lets rich shorten all of them at once.
    Here columns are as wide as what is in them; where that leaves too little for the help text,
    names and type stand under each other in one column.
    """

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print what typer made, its tables of options in our layout."""
        super().print(*(self._whole(each) for each in objects), **settings)

    def _whole(self, drawn: Any) -> Any:
        if not isinstance(drawn, Panel) or not isinstance(drawn.renderable, Table):
            return drawn
        table = drawn.renderable
        if any(column.ratio for column in table.columns):  # commands, which typer fits itself
            table.columns[-1].overflow = "fold"
            return drawn
        rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
        return Panel(
            _lay_out(rows, self.width - _FRAME),
            border_style=drawn.border_style,
            title=drawn.title,
            title_align=drawn.title_align,
        )


def _lay_out(rows: list[tuple[RenderableType, ...]], room: int) -> Table:
    """Put names and types beside the help, each in its own column if there is room for all."""
    split = [([_text(cell) for cell in cells[:-1]], _text(cells[-1])) for cells in rows]
    columns = [list(column) for column in zip(*(heads for heads, _ in split), strict=True)]
    kept = [column for column in columns if any(cell.plain for cell in column)]
    widths = [max(cell_len(cell.plain) for cell in column) for column in kept]
    if room - sum(widths) - _GAP * len(widths) < _LEAST_HELP:
        kept = [[_stack(heads) for heads, _ in split]]
        longest = max(cell_len(line) for cell in kept[0] for line in cell.plain.split("\n"))
        widths = [min(longest, _MOST_NAME, room // 2)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0), expand=True)
    for width in widths:
        table.add_column(width=width, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for k, (_, told) in enumerate(split):
        table.add_row(*(column[k] for column in kept), told)
    return table


def _stack(heads: list[Text]) -> Text:
    """Set names that belong together in a line where they are short, and the type below."""
    mark = Text.assemble(heads[0], " ") if heads[0].plain == "*" else Text()
    *names, kind = [head for head in heads if head.plain and head.plain != "*"] or [Text()]
    lines = list(_lines(names)) or [kind]
    if names:
        lines.append(Text.assemble("  ", kind))
    return Text.assemble(mark, Text("\n").join(lines))


def _lines(names: list[Text]) -> Iterator[Text]:
    line = Text()
    for name in (part for head in names for part in head.split(",")):
        if line.plain and cell_len(line.plain) + 1 + cell_len(name.plain) > _MOST_NAME // 2:
            yield line
            line = Text()
        line = Text.assemble(line, " ", name) if line.plain else name
    if line.plain:
        yield line


def _text(cell: RenderableType) -> Text:
    """Return what typer put into a cell as one text."""
    if isinstance(cell, Columns):
        return Text(" ").join(_text(part) for part in cell.renderables)
    return cell if isinstance(cell, Text) else Text(str(cell))
