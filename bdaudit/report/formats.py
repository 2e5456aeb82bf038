"""The formats a record can be written in, each in a module of its own."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, RecordError
from bdaudit.foundation.opening import RECORD_BYTES
from bdaudit.foundation.texts import parse_json, read_text
from bdaudit.records import AnyDocument, InversionRecord, ScreenRecord
from bdaudit.report.untrusted import shown

__all__ = ["FORMATS", "MERGED", "demand_format_for", "find_format", "merge_report", "render_report"]

FORMATS = {
    "html": "bdaudit.report.html_report",
    "sarif": "bdaudit.report.sarif_report",
    "junit": "bdaudit.report.junit_report",
    "md": "bdaudit.report.markdown_report",
    "csv": "bdaudit.report.csv_report",
    "env": "bdaudit.report.env_report",
    "intoto": "bdaudit.report.intoto_report",
    "cyclonedx": "bdaudit.report.cyclonedx_report",
    "openvex": "bdaudit.report.openvex_report",
    "model-card": "bdaudit.report.model_card_report",
    "json": "bdaudit.report.json_report",
}
"""Where `render` of each format lives. Imported when asked for: some bring large libraries."""

_OF_SCREENINGS = {
    "html": "bdaudit.report.screening_html",
    "md": "bdaudit.report.screening_markdown",
    "csv": "bdaudit.report.screening_csv",
    "json": "bdaudit.report.json_report",
}
"""Likewise of a screening, which has neither images nor a trigger."""

_OF_VERDICTS = ("sarif", "junit", "env", "intoto", "cyclonedx", "openvex", "model-card")
"""Formats that have nothing to say without a verdict."""

_AS_IT_WAS = ("json", "intoto")
"""Formats that hold the record itself, which must be read again as it was."""

MERGED = {"cyclonedx": True, "openvex": True, "model-card": False}
"""Formats that can be put into a file that exists, and whether that file is JSON."""


def find_format(name: str) -> str:
    """Return the format called `name`.

    Raises:
        ConfigError: There is none; the nearest known name is given.
    """
    if name in FORMATS:
        return name
    nearest = difflib.get_close_matches(name, FORMATS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(FORMATS)}"
    raise ConfigError(f"unknown report format {name!r}; {hint}")


def demand_format_for(name: str, kind: str) -> None:
    """Refuse a format that shows no record of this kind, before anything is computed for it.

    Raises:
        ConfigError: It shows records of audits alone, or the format is unknown.
    """
    find_format(name)
    if kind == "audit" or name == "json":
        return
    if kind == "inversion" or name in _OF_VERDICTS:
        able = ["json"] if kind == "inversion" else [f for f in FORMATS if f not in _OF_VERDICTS]
        raise ConfigError(
            f"a {name} report is made of an audit, not of a record of kind {kind}; "
            f"possible: {', '.join(able)}"
        )


def render_report(name: str, record: AnyDocument) -> str:
    """Write `record` in the format called `name`, from the record alone.

    Raises:
        ConfigError: The format is unknown.
        RecordError: The format cannot show this kind of record.
    """
    home = FORMATS[find_format(name)]
    if isinstance(record, ScreenRecord):
        if name not in _OF_SCREENINGS:
            raise RecordError(f"a {name} report is not made of a screening; of an audit it is")
        home = _OF_SCREENINGS[name]
    module = importlib.import_module(home)
    if isinstance(record, InversionRecord) and name != "json":
        raise RecordError(
            f"a {name} report is not made of a search for a trigger alone; of an audit it is"
        )
    text: str = module.render(record if name in _AS_IT_WAS else shown(record))
    return text


def merge_report(name: str, record: AnyDocument, existing: Path) -> str:
    """Put `record` into a file of the format that exists, and return the whole.

    The file itself is only read.

    Raises:
        ConfigError: The format is unknown, or cannot be put into a file.
        RecordError: The format cannot show this kind of record, or the file is no such file.
    """
    if find_format(name) not in MERGED:
        raise ConfigError(f"a {name} report is not merged; known: {', '.join(MERGED)}")
    if isinstance(record, InversionRecord | ScreenRecord):
        return render_report(name, record)
    what = f"a {name} file"
    text = read_text(existing, what=what, error=RecordError, limit=RECORD_BYTES)
    content: Any = text
    if MERGED[name]:
        content = parse_json(text, where=str(existing), what=what, error=RecordError)
    merged: str = importlib.import_module(FORMATS[name]).merge(
        shown(record), content, str(existing)
    )
    return merged
