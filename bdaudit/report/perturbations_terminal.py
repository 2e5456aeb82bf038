"""Tables of perturbations on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bdaudit.records.perturbations import PerturbationsRecord
from bdaudit.report.perturbations import not_measured, printed_tables
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import norm_name

__all__ = ["print_perturbations"]


def print_perturbations(record: PerturbationsRecord, console: Console) -> None:
    """Print `record` on `console`, fitted to its width."""
    record = shown(record)
    title = f"Perturbations of {record.family}  {norm_name(record.norm)} {record.eps:g}"
    console.print(Text(title, style="bold"))
    for printed in printed_tables(record):
        console.print(Text(f"\n{printed.title}: {printed.of}", style="bold"))
        console.print(Text(printed.note, style="dim"))
        texts = {"shown", "made", "architecture"}
        table = FittedTable(*(Column(name, text=name in texts) for name in printed.columns))
        for cells in printed.rows:
            table.add_row(*cells)
        console.print(table)
    for line in not_measured(record):
        console.print(Text.assemble(("not measured: ", "yellow"), line))
