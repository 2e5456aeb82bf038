"""Where things that can be made or fetched again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_folder"]

CACHE_VARIABLE = "BDAUDIT_CACHE"


def cache_folder() -> Path:
    """Return the user's cache folder, which may not exist yet; deleting it is always safe.

    It is `$BDAUDIT_CACHE` where that is set, else `bdaudit` in `$XDG_CACHE_HOME`, else
    `~/.cache/bdaudit`.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bdaudit"
