"""The record itself."""

from __future__ import annotations

from bdaudit.report.wording import AnyRecord
from bdaudit.results import to_json

__all__ = ["render"]


def render(record: AnyRecord) -> str:
    """Write `record` as `--json` does."""
    return to_json(record)
