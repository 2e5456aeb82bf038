"""How everything was named, as plain values for a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bdaudit.blackbox import BlackBoxOptions
from bdaudit.cases.fetching import in_public
from bdaudit.cases.recorded import as_recorded
from bdaudit.cases.sources import Sources
from bdaudit.foundation.sources import InMemory, Source
from bdaudit.models.settings import ModelSettings
from bdaudit.records import FileDigest

__all__ = ["IN_MEMORY", "describe_sources"]

IN_MEMORY = "in memory"
"""Stands in a record for what was handed over as an object and cannot be opened again."""


def describe_sources(sources: Sources, files: Sequence[FileDigest]) -> dict[str, Any]:
    """Write down how everything was named, as plain values.

    A file that was fetched stands under its address, pinned to what was fetched. `files` are all
    that were read.
    """
    digests = {file.path: file.sha256 for file in files}
    pinned = {
        path: f"{origin}#sha256={digests[path]}" if path in digests else origin
        for path, origin in sources.origins.items()
    }
    return {
        entry.name: in_public(_plain(getattr(sources, entry.name)), pinned)
        for entry in fields(sources)
        # The verdict holds the limits themselves.
        if entry.name not in ("policy", "origins")
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, InMemory):
        return IN_MEMORY
    if isinstance(value, Path | Source):
        return str(value)
    if isinstance(value, ModelSettings | BlackBoxOptions):
        return _plain(as_recorded(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        named = [_plain(inner) for inner in value]
        # A pair of arrays, or of modules, is one thing in memory.
        return IN_MEMORY if any(inner == IN_MEMORY for inner in named) else named
    return IN_MEMORY
