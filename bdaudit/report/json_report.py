"""The record itself."""

from __future__ import annotations

from bdaudit.records import to_json
from bdaudit.report.wording import AnyRecord

__all__ = ["render"]


def render(record: AnyRecord) -> str:
    """Write `record` as `--json` does."""
    return to_json(record)
