"""A sweep, and the defences that were tried, as self-contained pages."""

from __future__ import annotations

from bdaudit.records.defenses import DefenseRecord
from bdaudit.records.sweeps import SweepRecord
from bdaudit.report.page import render_page
from bdaudit.report.sweep_terminal import sort_worst_first
from bdaudit.report.untrusted import shown

__all__ = ["defenses_html", "sweep_html"]


def sweep_html(made: SweepRecord) -> str:
    """Write a sweep as a page that works offline and printed, the worst audit first."""
    made = shown(made)
    ordered = sort_worst_first(made.audits)
    names = [audit.outcome or "failed" for audit in ordered]
    counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    return render_page("sweep.html.j2", made=made, audits=ordered, counts=counts)


def defenses_html(record: DefenseRecord) -> str:
    """Write the ranking of defences as a page that works offline and printed."""
    return render_page("defenses.html.j2", record=shown(record))
