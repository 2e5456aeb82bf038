"""JSON files that lie beside a model's weights, read within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdaudit.errors import ModelError
from bdaudit.foundation.opening import read_bytes
from bdaudit.foundation.texts import decode_text, parse_json
from bdaudit.models.checkpoint import ReadFile
from bdaudit.models.shards import linked_within

__all__ = ["read_beside"]


def read_beside(path: Path, what: str, *, limit: int) -> tuple[dict[str, Any], ReadFile]:
    """Read a JSON object that lies in a model's folder, links of the hub's cache followed.

    Args:
        path: The file.
        what: What it is, for messages.
        limit: Most bytes.

    Returns:
        What it holds, and the file as it was read.

    Raises:
        ModelError: It cannot be read, lies elsewhere, or holds something else.
    """
    content = read_bytes(
        path, limit=limit, what=what, error=ModelError, within=linked_within(path.parent)
    )
    text = decode_text(content, where=str(path), what=what, error=ModelError)
    document = parse_json(text, where=str(path), what=what, error=ModelError)
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected {what}, got {type(document).__name__}")
    return document, ReadFile.of(path, content)
