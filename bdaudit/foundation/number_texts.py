"""Numbers as people write them, on a command line and in a file."""

from __future__ import annotations

import math
import re

from bdaudit.errors import ConfigError
from bdaudit.foundation.opening import shown

__all__ = ["read_numbers", "read_size"]

_MOST_NUMBERS = 1000
_LONGEST_NUMBER = 64
_SIDE = re.compile(r"[1-9][0-9]{0,5}")  # above 0, and no more than memory could ever hold


def read_numbers(text: str) -> tuple[float, ...]:
    """Read "0.5,0.25" or "8/255" into numbers.

    Raises:
        ConfigError: A part is no number.
    """
    parts = text.split(",")
    if len(parts) > _MOST_NUMBERS:
        raise ConfigError(f"expected at most {_MOST_NUMBERS} numbers, got {len(parts)}")
    try:
        return tuple(_read_number(part.strip()) for part in parts)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"expected numbers such as 0.02 or 8/255, separated by commas, got {shown(text)!r}"
        ) from error


def _read_number(text: str) -> float:
    """Read a decimal number or a fraction of two, by floats.

    An exact `Fraction` of "1e-999999999" would have a denominator of a billion digits.
    """
    above, slash, below = text.partition("/")
    number = float(above) / float(below) if slash else float(above)
    too_small = number == 0.0 and any(digit in "123456789" for digit in above.lower().split("e")[0])
    written = text.isascii() and "_" not in text and len(text) <= _LONGEST_NUMBER
    if not math.isfinite(number) or too_small or not written:
        raise ValueError("no number, or one that is too long, too large or too small")
    return number


def read_size(text: str) -> tuple[int, int]:
    """Read "32" or "32x24" into (height, width).

    Raises:
        ConfigError: It is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(_SIDE.fullmatch(part) for part in parts):
        raise ConfigError(f"expected 32 or 32x32, got {shown(text)!r}")
    return int(parts[0]), int(parts[-1])
