"""Lengths of time as a person would say them."""

from __future__ import annotations

__all__ = ["in_minutes"]


def in_minutes(seconds: float) -> str:
    """Return a length of time as a person would say it: "40 s", "3 min", "2 h 10 min"."""
    if seconds < 55:
        return f"{max(5 * round(seconds / 5), 5)} s"
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
