"""Numbers of a command line: read by floats, and refused where they are none."""

from __future__ import annotations

import time

import pytest

from bdaudit.errors import ConfigError
from bdaudit.foundation.number_texts import read_numbers, read_size


def test_decimals_and_fractions() -> None:
    assert read_numbers("0.5, 8/255,1e-3,0,-1") == (0.5, 8 / 255, 1e-3, 0.0, -1.0)
    assert read_size("32") == (32, 32)
    assert read_size("32x24") == (32, 24)


@pytest.mark.parametrize(
    "text",
    ["", ",", "x", "nan", "inf", "1e99999", "1e-999999999", "1/0", "1/" + "9" * 3000, "8/255/3",
     "1_000", "0x10", "\u0661", "9" * 5000, "1," * 2000],
)  # fmt: skip
def test_what_is_no_number_is_refused_at_once(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read_numbers(text)
    assert time.monotonic() - started < 5
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "0", "x", "1x2x3", "-1", "9" * 5000, "\u0661", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_size(text)
