"""A perturbation in the frame of the box that is asked about.

A universal perturbation is one pattern for all images. What it is to wake lies at one place of
every image that a classifier sees, and on objects it lies where the object is. So for marked images
the pattern is laid over the box, as a trigger on an object is: its middle third over the box,
stretched with it, the rest around it, as far as the picture goes. Laid over the whole picture
instead, the same pattern meets each object with another part of itself, and wakes less (measured,
docs/detection.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.detection.marking import PIXELS, boxes_of, is_marked

__all__ = ["framed"]

_BOX = 1.0 / 3.0
"""Side of the box in the pattern, of the pattern's own."""

_FINEST = 96
"""Most values along a side of the pattern, so that its middle third is no finer than the boxes it
is laid over, which would each meet values that the others do not. Larger ones are averaged."""


def framed(delta: Tensor, images: Tensor) -> Tensor:
    """Return what is added to each image when a pattern is laid on.

    Args:
        delta: (1, C, H, W), one pattern for all, or (..., C, H, W), one for each image.
        images: (..., C, H, W).

    Returns:
        `delta` itself where the images are not marked. Of marked ones (..., 4, H, W),
        differentiable in delta: between its values it is interpolated, so that none grows larger,
        and nothing is added outside it nor to the mark.
    """
    flat = images.flatten(0, -4)
    if not len(flat) or not is_marked(flat):
        return delta
    patterns = delta[..., :PIXELS, :, :].expand(*images.shape[:-3], -1, -1, -1).flatten(0, -4)
    height, width = images.shape[-2:]
    if max(height, width) > _FINEST:
        coarse = [max(1, side * _FINEST // max(height, width)) for side in (height, width)]
        patterns = functional.interpolate(patterns, size=coarse, mode="area")
    left, top, right, bottom = boxes_of(flat).to(delta.dtype).unbind(1)
    across, down = (right - left).clamp_min(1.0), (bottom - top).clamp_min(1.0)
    zero = torch.zeros_like(across)
    # From places of the picture to places of the pattern, both from -1 to 1.
    theta = _BOX * torch.stack(
        (
            torch.stack((width / across, zero, (width - left - right) / across), dim=1),
            torch.stack((zero, height / down, (height - top - bottom) / down), dim=1),
        ),
        dim=1,
    )
    grid = functional.affine_grid(theta, [len(flat), PIXELS, height, width], align_corners=False)
    laid = functional.grid_sample(
        patterns, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    kept = functional.pad(laid, (0, 0, 0, 0, 0, images.shape[-3] - PIXELS))
    return kept.view(*images.shape[:-3], *kept.shape[1:])
