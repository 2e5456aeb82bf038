"""Digests of files, for where no tensor library is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bdaudit.errors import InputError
from bdaudit.foundation.opening import MODEL_BYTES, TIME_LIMIT_S, open_file

__all__ = ["digest_file"]

_CHUNK_BYTES = 1 << 20


def digest_file(
    path: str | Path,
    *,
    limit: int = MODEL_BYTES,
    what: str = "a file",
    error: type[InputError] = InputError,
    within: Path | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> str:
    """Return the sha256 of a file's bytes, in hex.

    Arguments and errors are those of `opening.open_file`.
    """
    state = hashlib.sha256()
    with open_file(
        path, limit=limit, what=what, error=error, within=within, time_limit_s=time_limit_s
    ) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()
