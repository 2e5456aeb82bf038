"""Digests of files, for where no tensor library is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["digest_file"]

_CHUNK_BYTES = 1 << 20


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
