"""Which convolutions lie on a residual block's shortcut path, by name."""

from __future__ import annotations

__all__ = ["is_on_shortcut"]

# One component of a dotted name is enough: `layer2.0.shortcut.0`, `layer2.0.downsample.0`.
_SHORTCUT_PARTS = frozenset({"shortcut", "convshortcut", "downsample", "skip", "identity", "proj"})


def is_on_shortcut(name: str) -> bool:
    """Whether the convolution of that full name is a shortcut's."""
    return not _SHORTCUT_PARTS.isdisjoint(name.lower().split("."))
