"""Numbers as people write them, on a command line and in a file."""

from __future__ import annotations

from fractions import Fraction

from bdaudit.errors import ConfigError

__all__ = ["read_numbers", "read_size"]


def read_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read "0.5,0.25" or "8/255" into numbers.

    Raises:
        ConfigError: A part is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{option}: expected numbers such as 0.02 or 8/255, separated by commas, got {text!r}"
        ) from error


def read_size(text: str | None, option: str = "--input-size") -> tuple[int, int] | None:
    """Read "32" or "32x24" into (height, width).

    Raises:
        ConfigError: It is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option}: expected 32 or 32x32, got {text!r}")
    return int(parts[0]), int(parts[-1])
