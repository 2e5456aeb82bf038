"""A ledger of records as CSV and as a page."""

from __future__ import annotations

import csv
import io

from bdaudit.errors import ConfigError
from bdaudit.records.ledger import LedgerRecord
from bdaudit.report.page import render_page
from bdaudit.report.untrusted import csv_cell, shown

__all__ = ["COLUMNS", "LEDGER_FORMATS", "render_ledger"]

LEDGER_FORMATS = ("csv", "html")

COLUMNS = (
    "record", "sha256", "created", "bdaudit", "model", "backdoor", "verdict", "release",
    "signature", "files_there", "files_changed", "files_missing", "files_elsewhere",
    "other_versions", "limits", "follows", "verdict_today", "release_today", "changes",
    "objections",
)  # fmt: skip


def render_ledger(name: str, made: LedgerRecord) -> str:
    """Write a ledger in the format called `name`.

    Raises:
        ConfigError: It is not one of `LEDGER_FORMATS`.
    """
    if name not in LEDGER_FORMATS:
        raise ConfigError(f"a ledger has no {name!r} report; known: {', '.join(LEDGER_FORMATS)}")
    made = shown(made)
    return _csv(made) if name == "csv" else render_page("ledger.html.j2", made=made)


def _csv(made: LedgerRecord) -> str:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(COLUMNS)
    for entry in made.entries:
        rows.writerow(
            csv_cell("" if value is None else str(value))
            for value in (
                entry.path,
                entry.sha256,
                None if entry.created is None else entry.created.isoformat(),
                entry.bdaudit,
                entry.model,
                entry.backdoor,
                entry.outcome,
                entry.release,
                entry.signature,
                entry.count("there"),
                entry.count("changed"),
                entry.count("missing"),
                entry.count("elsewhere"),
                "; ".join(entry.versions),
                entry.limits,
                None if entry.follows is None else ("yes" if entry.follows else "no"),
                entry.today,
                entry.release_today,
                "yes" if entry.changes else "no",
                "; ".join(entry.objections),
            )
        )
    return stream.getvalue()
