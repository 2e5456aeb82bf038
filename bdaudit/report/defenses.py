"""The defences that were tried, ranked, on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdaudit.records.defenses import DefenseRecord, TriedDefense
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import share

__all__ = ["print_defenses"]

_COLORS = {"removed": "green", "dormant": "red", "active": "red", "inconclusive": "yellow"}
_HEADLINES = {
    "pass": ("green", "A MODEL TO RELEASE"),
    "fail": ("red", "NONE REMOVED"),
    "inconclusive": ("yellow", "NONE SURELY REMOVED"),
}
_NARROW = 70
"""Columns below which the table leaves out what it can."""


def print_defenses(record: DefenseRecord, folder: Path, console: Console) -> None:
    """Print the ranking, what stood in the way of each, and where the best lies."""
    record = shown(record)
    color, word = _HEADLINES[record.outcome]
    console.print(Text.assemble((f" {word} ", f"bold reverse {color}"), f"  {record.why}"))
    if record.trigger_recovered:
        console.print(Text(f"The trigger was looked for in the original. {record.search}"))
    console.print()
    console.print(_table(record, narrow=console.width < _NARROW))
    original = record.original_clean_acc
    if original is not None:
        console.print(Text(f"clean accuracy of the original: {share(original)}", style="dim"))
    console.print()
    for row in record.tried:
        notes = [row.why, *(f"done again: {change}" for change in row.changes)]
        for note in notes:
            console.print(Text.assemble((f"{row.method}: ", "bold"), note))
        for warning in row.warnings:
            head = ((f"{row.method}: ", "bold"), ("Warning: ", "bold yellow"))
            console.print(Text.assemble(*head, warning))
    console.print()
    console.print(
        Text(
            f"{record.n_defender} clean images for the defences, {record.n_auditor} others for the "
            f"audits; seed {record.seed}; {record.elapsed_s:.0f} s\n"
            f"all models, audits and this ranking: {folder}",
            style="dim",
        )
    )
    if record.best is not None:
        console.print(Text(f"the best: {folder / record.best}", style="bold"))


def _table(record: DefenseRecord, *, narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("defence", overflow="fold")
    table.add_column("outcome")
    table.add_column("clean acc", justify="right")
    table.add_column("trigger alone", justify="right")
    if not narrow:
        table.add_column("seconds", justify="right")
        table.add_column("kept")
    for row in record.tried:
        outcome = row.outcome or "failed"
        cells = [
            Text(row.method),
            Text(outcome, style=_COLORS.get(outcome, "")),
            Text(share(row.clean_acc)),
            Text(share(row.asr)),
        ]
        if not narrow:
            cells += [Text(_seconds(row)), Text("" if row.kept == "nothing" else row.kept)]
        table.add_row(*cells)
    return table


def _seconds(row: TriedDefense) -> str:
    """Write how long defence and audit took when they were run."""
    parts = [row.defense_s, row.audit_s]
    return " + ".join("-" if part is None else f"{part:.0f}" for part in parts)
