"""A family of models on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bdaudit.records.families import Family, FamilyMember
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import share

__all__ = ["print_family"]

_STYLES = {"active": "red", "dormant": "yellow", "unknown": "magenta"}


def print_family(family: Family, console: Console) -> None:
    """Print a table of the family's members, fitted to the console's width."""
    family = shown(family)
    counts = _counts(family.members)
    console.print(
        Text(f"{family.name}: {len(family.members)} models of known truth  {counts}", style="bold")
    )
    attack, defence = Column("attack", text=True), Column("defence", text=True)
    truth = Column("truth", text=True)
    table = FittedTable("model", attack, defence, "clean acc", "ASR", truth)
    for member in family.members:
        is_reference = member.name in family.references
        table.add_row(
            member.name,
            member.attack or "-",
            member.defense or "-",
            "-" if member.clean_acc is None else share(member.clean_acc),
            "-" if member.asr is None else share(member.asr),
            Text(
                "reference" if is_reference else member.truth,
                style="dim" if is_reference else _STYLES.get(member.truth, ""),
            ),
        )
    console.print(table)
    for member in family.members:
        if member.truth == "unknown":
            console.print(Text(f"unknown: {member.name}: {member.truth_note}", style="dim"))


def _counts(members: Sequence[FamilyMember]) -> str:
    truths = [member.truth for member in members]
    return ", ".join(f"{truths.count(truth)} {truth}" for truth in dict.fromkeys(truths))
