"""A screening without images as one self-contained HTML file."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from bdaudit.records import ScreenRecord
from bdaudit.report.page import render_page
from bdaudit.report.screening import (
    GISTS_OF_SCREENING,
    LEFT_OPEN,
    class_namer,
    file_of,
    p_value,
)

__all__ = ["render"]


def render(record: ScreenRecord) -> str:
    """Write `record` as a page that works offline and printed."""
    screening = record.screening
    return render_page(
        "screening.html.j2",
        record=record,
        screening=screening,
        file_name=PurePath(file_of(record)).name,
        gist=GISTS_OF_SCREENING[screening.outcome],
        p_value=p_value(screening),
        left_open=LEFT_OPEN,
        class_name=class_namer(screening),
        command=None if record.command is None else shlex.join(record.command),
    )
