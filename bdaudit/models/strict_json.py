"""JSON that means the same to every reader."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

__all__ = ["load_strictly"]


def load_strictly(content: bytes) -> Any:
    """Parse JSON, refusing what parsers read differently: an object with a key twice.

    Raises:
        ValueError: It is not UTF-8 or no JSON, is nested too deeply, or has a key twice.
    """
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (doubled, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {doubled[:80]!r} twice")
    return entries
