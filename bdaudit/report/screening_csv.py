"""A screening without images as CSV: one class a row."""

from __future__ import annotations

import csv
import io

from bdaudit.records import ScreenRecord
from bdaudit.report.untrusted import csv_cell

__all__ = ["COLUMNS", "render"]

COLUMNS = (
    "class", "name", "margin", "start", "steps", "outcome", "p_value", "limit",
    "published_p_value",
)  # fmt: skip
"""Margins are in logits; the last four are the record's own, the same in each row."""


def render(record: ScreenRecord) -> str:
    """Write the classes of `record`, largest margin first."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(COLUMNS)
    screening = record.screening
    names = screening.class_names or ()
    both = (screening.p_value, screening.published_p_value)
    p_value, published = ("" if value is None else f"{value:.6g}" for value in both)
    for row in screening.margins:
        name = csv_cell(names[row.label]) if row.label < len(names) else ""
        figures = (f"{row.margin:.6g}", f"{row.start:.6g}", row.steps)
        end = (screening.outcome, p_value, screening.limit, published)
        rows.writerow([row.label, name, *figures, *end])
    return stream.getvalue()
