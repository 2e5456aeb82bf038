"""A difference between two audits on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bdaudit.records.difference import DifferenceRecord
from bdaudit.report.difference import (
    attack_line,
    changed_inputs,
    figure_rows,
    gist,
    input_value,
    limits_line,
    same_inputs,
    side_line,
)
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown

__all__ = ["print_difference"]

_STYLES = {"worse": "red", "better": "green", "same": "", "unclear": "dim"}


def print_difference(made: DifferenceRecord, console: Console) -> None:
    """Print `made` on `console`, fitted to its width."""
    made = shown(made)
    console.print(Text(gist(made), style=f"bold {_STYLES[made.change]}".strip()))
    console.print(Text(f"old  {side_line(made.old)}"))
    console.print(Text(f"new  {side_line(made.new)}"))
    console.print(Text(f"     {made.new.why}"))
    console.print(Text(limits_line(made), style="dim"))
    console.print()
    attack = attack_line(made)
    if attack is not None:
        console.print(Text(f"re-activation: {attack}", style="dim"))
    heads = (Column("", text=True), "old", "new", "change", "between")
    table = FittedTable("figure", *heads)
    for row in figure_rows(made):
        style = _STYLES.get(row.kind, "dim")
        figures = (row.old, row.new, row.difference, row.bounds)
        table.add_row(row.name, Text(row.change, style=style), *figures)
    console.print(table)
    changed = list(changed_inputs(made))
    if changed:
        console.print()
        console.print(Text("Changed inputs", style="bold"))
        inputs = FittedTable("input", Column("old", text=True), Column("new", text=True))
        for name, given in changed:
            inputs.add_row(name, input_value(given.old), input_value(given.new))
        console.print(inputs)
    same = same_inputs(made)
    if same:
        console.print(Text(f"the same in both: {', '.join(same)}", style="dim"))
    for note in made.notes:
        console.print(Text.assemble(("note: ", "yellow"), note))
