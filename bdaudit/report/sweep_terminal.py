"""A sweep on the terminal: the worst audit first."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bdaudit.records.sweeps import SweepRecord, SweptAudit
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import number, points

__all__ = ["print_sweep", "sort_worst_first"]

_ORDER = ("active", "dormant", "failed", "inconclusive", "removed")
_STYLES = {
    "removed": "green",
    "dormant": "red",
    "active": "red",
    "failed": "magenta",
    "inconclusive": "yellow",
}


def sort_worst_first(audits: tuple[SweptAudit, ...]) -> list[SweptAudit]:
    """Sort audits: by verdict, those that failed before the inconclusive, then by lift."""

    def rank(audit: SweptAudit) -> tuple[int, float, str]:
        lift = audit.asr if audit.outcome == "active" else audit.lift
        return _ORDER.index(_name(audit)), -(lift or 0.0), audit.key

    return sorted(audits, key=rank)


def print_sweep(made: SweepRecord, console: Console) -> None:
    """Print `made` on `console`, fitted to its width."""
    made = shown(made)
    kept = sum(audit.status == "kept" for audit in made.audits)
    title = f"{len(made.audits)} audits in {_duration(made.elapsed_s)}"
    console.print(Text(title + (f", {kept} kept from before" if kept else ""), style="bold"))
    figures = ("clean", "alone", "woken", "lift", "BEC", "time")
    table = FittedTable("audit", Column("verdict", text=True), *figures)
    ordered = sort_worst_first(made.audits)
    for audit in ordered:
        table.add_row(
            audit.key,
            Text(_name(audit), style=_STYLES[_name(audit)]),
            _share(audit.clean_acc),
            _share(audit.asr),
            _share(audit.reactivated_asr),
            points(audit.lift),
            number(audit.bec),
            "-" if audit.elapsed_s is None else _duration(audit.elapsed_s),
        )
    console.print(table)
    _print_reported(ordered, console)
    for audit in ordered:
        if audit.status == "failed":
            console.print(Text(f"{audit.key}: {audit.why}", style="magenta"))
    for note in made.notes:
        console.print(Text.assemble(("note: ", "yellow"), note))


def _print_reported(audits: list[SweptAudit], console: Console) -> None:
    """Print what the benchmark's own files say, each beside what was measured."""
    told = [(audit, audit.reported) for audit in audits if audit.reported is not None]
    if not told:
        return
    console.print(Text("reported by the benchmark, and measured here", style="bold"))
    heads = ("clean", "measured", "alone", "measured", "true label", "measured")
    table = FittedTable("audit", *heads)
    for audit, said in told:
        table.add_row(
            audit.key,
            *(_share(said.clean_acc), _share(audit.clean_acc)),
            *(_share(said.asr), _share(audit.asr)),
            *(_share(said.true_label_acc), _share(audit.true_label_acc)),
        )
    console.print(table)


def _name(audit: SweptAudit) -> str:
    return "failed" if audit.outcome is None else audit.outcome


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
