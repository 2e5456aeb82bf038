"""An image together with the one box that is asked about: a fourth channel that is 1 inside it.

A detector answers with a list of boxes. What is audited needs one answer for one question, so a
question is put: what does the detector see in this box? The answer is the class of the detection
that fits the box best, or that there is none (`NOTHING`). Since a model of bdaudit is a function
of images alone, the box travels in the image as a channel of its own, which no trigger, no
perturbation and no placebo changes. Everything that is asked of a classifier can then be asked of a
detector, an object at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bdaudit.errors import DataError

__all__ = [
    "CHANNELS",
    "NOTHING",
    "PIXELS",
    "Places",
    "boxes_of",
    "inside_of",
    "is_marked",
    "mark",
    "off_mark",
    "pixels_of",
    "sparing_marks",
    "unmarked",
    "with_pixels",
]

NOTHING = 0
"""The label of a box that holds no object: torchvision's detectors number their classes from 1."""

PIXELS = 3
"""Channels of the picture itself."""

CHANNELS = PIXELS + 1
"""Channels of a marked image."""

_INSIDE = 0.5


@dataclass(frozen=True, slots=True)
class Places:
    """Which box of which picture each image of a sample asks about.

    Attributes:
        pictures: (N,) int64, the number of the picture. Several images of a sample may ask about
            boxes of one picture, and these never fall into different halves of a split.
        boxes: (N, 4) float32, left, top, right, bottom in pixels of the sample's images.
        annotated: By the number of the picture, all objects it has by its annotations: boxes (M, 4)
            as above, and labels (M,) int64 from 1.
        blocked: By the number of the picture, boxes (B, 4) that no empty place may touch: its
            objects, and what its annotations say nothing certain about.
    """

    pictures: Tensor
    boxes: Tensor
    annotated: tuple[tuple[Tensor, Tensor], ...]
    blocked: tuple[Tensor, ...] = ()

    def rows(self) -> dict[int, list[int]]:
        """Return by the number of the picture its images, both in the order in which they come."""
        found: dict[int, list[int]] = {}
        for row, number in enumerate(self.pictures.tolist()):
            found.setdefault(number, []).append(row)
        return found

    def take(self, indices: Tensor) -> Places:
        """Return those of a sub-sample; pictures keep their numbers."""
        return replace(self, pictures=self.pictures[indices], boxes=self.boxes[indices])


def mark(pictures: Tensor, boxes: Tensor) -> Tensor:
    """Put into every picture the box that is asked about.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        boxes: (N, 4), left, top, right, bottom in pixels; every pixel that a box touches is inside.

    Returns:
        (N, 4, H, W), the fourth channel 1 inside the box and 0 outside.

    Raises:
        DataError: A box has no pixel inside the picture, or the pictures are not in colour.
    """
    if pictures.ndim != 4 or pictures.shape[1] != PIXELS or boxes.shape != (len(pictures), 4):
        raise DataError(
            f"expected pictures (N, 3, H, W) and boxes (N, 4), got {tuple(pictures.shape)} and "
            f"{tuple(boxes.shape)}"
        )
    height, width = pictures.shape[-2:]
    left, top, right, bottom = boxes.to(pictures).unbind(1)
    rows = torch.arange(height, device=pictures.device).to(pictures)
    columns = torch.arange(width, device=pictures.device).to(pictures)
    across = (columns + 1 > left[:, None]) & (columns < right[:, None])
    down = (rows + 1 > top[:, None]) & (rows < bottom[:, None])
    inside = down[:, :, None] & across[:, None, :]
    empty = ~inside.flatten(1).any(dim=1)
    if bool(empty.any()):
        first = int(empty.nonzero()[0])
        raise DataError(
            f"expected boxes inside pictures of {width} x {height} pixels, got "
            f"{[round(float(side), 1) for side in boxes[first]]}"
        )
    return torch.cat((pictures, inside[:, None].to(pictures)), dim=1)


def boxes_of(images: Tensor) -> Tensor:
    """Return the boxes (N, 4) that marked images (N, 4, H, W) ask about, in whole pixels.

    Left, top, right and bottom, float32. An image that was cropped until nothing of its box was
    left has the box (0, 0, 0, 0).
    """
    inside = inside_of(images)[:, 0]
    down, across = inside.any(dim=2), inside.any(dim=1)
    top, bottom = _ends(down)
    left, right = _ends(across)
    return torch.stack((left, top, right, bottom), dim=1)


def pixels_of(images: Tensor) -> Tensor:
    """Return the pictures (N, 3, H, W) of marked images (N, 4, H, W)."""
    return images[:, :PIXELS]


def with_pixels(images: Tensor, pixels: Tensor) -> Tensor:
    """Return marked images (N, 4, H, W) with other pictures (N, 3, H, W) and the same boxes."""
    return torch.cat((pixels, images[:, PIXELS:]), dim=1)


def unmarked(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) without their mark, if they have one."""
    return pixels_of(images) if is_marked(images) else images


def inside_of(images: Tensor) -> Tensor:
    """Return (N, 1, H, W) whether each pixel of marked images (N, 4, H, W) is inside the box."""
    return images[:, PIXELS:] > _INSIDE


def sparing_marks(change: Tensor, images: Tensor) -> Tensor:
    """Return what is to be added to images (N, C, H, W), without any change of their marks.

    Args:
        change: (N, C, H, W) or (1, C, H, W).
        images: What it is added to, marked or not.
    """
    return off_mark(change) if is_marked(images) else change


def off_mark(change: Tensor) -> Tensor:
    """Return a change (..., 4, H, W) of marked images with nothing in the channel of the mark."""
    pixels = torch.arange(change.shape[-3], device=change.device) < PIXELS
    return change * pixels[:, None, None]


def is_marked(images: Tensor) -> bool:
    """Whether images (N, C, H, W) have four channels, the last of nothing but 0 and 1."""
    if images.ndim != 4 or images.shape[1] != CHANNELS:
        return False
    channel = images[:, PIXELS]
    return bool(((channel == 0) | (channel == 1)).all())


def _ends(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place (N,) that is inside (N, L), and the one after the last; 0 and 0."""
    length = inside.shape[1]
    places = torch.arange(length, device=inside.device)
    any_inside = inside.any(dim=1)
    first = torch.where(inside, places, length).amin(dim=1).where(any_inside, 0)
    last = torch.where(inside, places + 1, 0).amax(dim=1)
    return first.float(), last.float()
