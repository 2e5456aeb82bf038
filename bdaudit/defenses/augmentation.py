"""The augmentation of the field's defences: shift by a few pixels, flip left to right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.detection import boxes_of, is_marked

__all__ = ["shift_and_flip"]


def shift_and_flip(
    images: Tensor, *, max_shift: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """Shift every image at random by whole pixels, filled with zeros, and flip one in two.

    Rows of a table, images of one pixel's height, come back as they are. The box that a marked
    image (`detection.mark`) asks about moves along and is never cut, so that its label holds: what
    would cut it is shifted less.

    Args:
        images: (N, C, H, W); left as they are.
        max_shift: Largest shift either way, as a share of the shorter side; rounded to pixels.
        flip: Whether to flip left to right with chance 1/2.
        generator: Seeded CPU generator; the draws do not depend on the images' device.

    Returns:
        (N, C, H, W) on the images' device, its memory in that order. With the channels last in
        memory, training a narrow network on a CPU would write outside its buffers
        (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    n, channels, height, width = images.shape
    if height == 1:
        return images.clone()  # a row of a table: its columns have no neighbours and no mirror
    reach = round(max_shift * min(height, width))
    down = torch.randint(0, 2 * reach + 1, (n, 1), generator=generator)
    right = torch.randint(0, 2 * reach + 1, (n, 1), generator=generator)
    if is_marked(images):
        left, top, right_edge, bottom = boxes_of(images).long().cpu().unbind(1)
        empty = bottom <= top  # of which there is nothing to cut
        down = _within(down, reach + bottom - height, reach + top, empty)
        right = _within(right, reach + right_edge - width, reach + left, empty)
    rows = down + torch.arange(height)  # (N, H) into the padded image
    columns = right + torch.arange(width)  # (N, W)
    if flip:
        flipped = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    padded = functional.pad(images, (reach, reach, reach, reach))
    # One index a dimension, so that the result is new and in the order of its dimensions.
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _within(shift: Tensor, least: Tensor, most: Tensor, free: Tensor) -> Tensor:
    """Bring shifts (n, 1) between the limits (n,) of each, but for those that are free."""
    bounded = shift.clamp(least[:, None], most[:, None])
    return torch.where(free[:, None], shift, bounded)
