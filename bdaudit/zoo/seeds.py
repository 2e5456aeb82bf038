"""Seeds that follow from a family's seed and a name, so that no member's hangs on another's."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, name: str) -> int:
    """Return a seed in [0, 2**31) for what is called `name`.

    >>> derive_seed(0, "badnets-r10-s1") == derive_seed(0, "badnets-r10-s1")
    True
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
