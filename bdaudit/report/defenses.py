"""The defences that were tried, ranked, on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from bdaudit.records.defenses import DefenseRecord, TriedDefense
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import share

__all__ = ["print_defenses"]

_COLORS = {"removed": "green", "dormant": "red", "active": "red", "inconclusive": "yellow"}
_HEADLINES = {
    "pass": ("green", "A MODEL TO RELEASE"),
    "fail": ("red", "NONE REMOVED"),
    "inconclusive": ("yellow", "NONE SURELY REMOVED"),
}


def print_defenses(record: DefenseRecord, folder: Path, console: Console) -> None:
    """Print the ranking, what stood in the way of each, and where the best lies."""
    record = shown(record)
    color, word = _HEADLINES[record.outcome]
    console.print(Text.assemble((f" {word} ", f"bold reverse {color}"), f"  {record.why}"))
    if record.trigger_recovered:
        console.print(Text(f"The trigger was looked for in the original. {record.search}"))
    console.print()
    console.print(_table(record))
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


def _table(record: DefenseRecord) -> FittedTable:
    outcome, kept = Column("outcome", text=True), Column("kept", text=True)
    table = FittedTable("defence", outcome, "clean acc", "trigger alone", "seconds", kept)
    for row in record.tried:
        word = row.outcome or "failed"
        table.add_row(
            row.method,
            Text(word, style=_COLORS.get(word, "")),
            share(row.clean_acc),
            share(row.asr),
            _seconds(row),
            "" if row.kept == "nothing" else row.kept,
        )
    return table


def _seconds(row: TriedDefense) -> str:
    """Write how long defence and audit took when they were run."""
    parts = [row.defense_s, row.audit_s]
    if not any(parts):
        return "-"
    return " + ".join("-" if part is None else f"{part:.0f}" for part in parts)
