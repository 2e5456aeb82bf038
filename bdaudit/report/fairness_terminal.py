"""Fairness figures on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bdaudit.records.fairness import FairnessRecord, MeasuredFairness
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import share, share_with_interval

__all__ = ["one_line", "print_fairness"]


def print_fairness(made: FairnessRecord, console: Console) -> None:
    """Print `made` on `console`, fitted to its width."""
    made = shown(made)
    stamped = ", ".join(made.stamped)
    console.print(Text(f"Groups by {made.column}, opportunity: class {made.positive}", "bold"))
    console.print(Text(f"the trigger is on the rows of: {stamped}", style="dim"))
    figures = ("clean acc", "opportunity", "odds", "equal acc")
    table = FittedTable("model", Column("rows", text=True), *figures)
    for each in made.measured:
        table.add_row(
            each.model,
            _rows(each),
            share(each.accuracy),
            *(f"{100 * gap:.1f}" for gap in (each.opportunity, each.odds, each.equal_accuracy)),
        )
    console.print(table)
    console.print(
        Text("points between the two groups that differ most; 0: all are alike", style="dim")
    )
    groups = FittedTable("model", Column("rows", text=True), Column("group", text=True), *_RATES)
    for each in made.measured:
        for group in each.groups:
            rates = (group.accuracy, group.true_positive_rate, group.false_positive_rate)
            groups.add_row(each.model, _rows(each), group.group, *map(share_with_interval, rates))
    console.print(groups)
    for note in made.notes:
        console.print(Text(f"note: {note}", style="yellow"))


_RATES = ("accuracy", "true positives", "false positives")


def one_line(made: FairnessRecord) -> str:
    """Say it in a line."""
    made = shown(made)
    said = (
        f"{each.model} {_rows(each)}: opportunity {100 * each.opportunity:.1f}, odds "
        f"{100 * each.odds:.1f}, accuracy {100 * each.equal_accuracy:.1f} points apart"
        for each in made.measured
    )
    return "; ".join(said)


def _rows(each: MeasuredFairness) -> str:
    return "with trigger" if each.triggered else "clean"
