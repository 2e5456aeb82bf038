"""The preview strip: geometry and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bdaudit.data import from_arrays
from bdaudit.errors import ConfigError, DataError
from bdaudit.triggers import AllToOne, Patch, SourceSpecific, Trigger, preview_strip
from bdaudit.triggers.preview import GAP, HEADER, MARGIN

SAMPLE = from_arrays(
    torch.full((12, 1, 32, 32), 0.2), torch.arange(12) % 3, class_names=["a", "b", "a long name"]
)
TRIGGER = Trigger(transform=Patch(image=torch.full((1, 4, 4), 0.25)), rule=AllToOne(0))


def cells(n: int) -> np.ndarray:
    """Cut the strip into its cells (row, column, height, width, channel)."""
    strip = np.asarray(preview_strip(SAMPLE, TRIGGER, n=n))
    side = 128
    rows = []
    for row in range(3):
        top = HEADER + row * (side + GAP)
        lefts = [MARGIN + column * (side + GAP) for column in range(n)]
        rows.append([strip[top : top + side, left : left + side] for left in lefts])
    return np.array(rows)


def test_rows_are_clean_triggered_and_ten_times_the_difference() -> None:
    clean, triggered, difference = cells(2)[:, 0, :, :, 0]
    assert np.unique(clean).tolist() == [51]
    patch = np.zeros((128, 128), dtype=bool)
    patch[112:, 112:] = True  # 4 of 32 pixels, enlarged four times
    assert np.unique(triggered[patch]).tolist() == [64]
    assert np.unique(triggered[~patch]).tolist() == [51]
    assert abs(int(np.unique(difference[patch]).item()) - round(0.05 * 10 * 255)) <= 1
    assert np.unique(difference[~patch]).tolist() == [0]


def test_size_follows_the_number_of_images_that_count() -> None:
    assert preview_strip(SAMPLE, TRIGGER, n=3).width == MARGIN + 3 * (128 + GAP)
    assert preview_strip(SAMPLE, TRIGGER, n=100).width == MARGIN + 8 * (128 + GAP)


def test_large_images_are_shown_at_their_size() -> None:
    sample = from_arrays(torch.rand(4, 3, 200, 260), [0, 1, 2, 3])
    trigger = Trigger(transform=Patch(image=torch.ones(3, 9, 9)), rule=AllToOne(0))
    assert preview_strip(sample, trigger, n=1).size == (MARGIN + 260 + GAP, HEADER + 3 * 208)


def test_nothing_to_show() -> None:
    trigger = Trigger(transform=TRIGGER.transform, rule=SourceSpecific(0, (2,)))
    with pytest.raises(ConfigError, match="at least 1"):
        preview_strip(SAMPLE, trigger, n=0)
    two = from_arrays(SAMPLE.images[:2], SAMPLE.labels[:2], class_names=["a", "b", "c"])
    with pytest.raises(DataError, match="no image"):
        preview_strip(two, trigger)
