"""Pictures for people in which the box that is asked about is outlined."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bdaudit.detection.marking import boxes_of, is_marked, unmarked

__all__ = ["outlined", "to_bytes"]

# Side by side they show on any ground.
_DARK, _BRIGHT = (16, 16, 16), (255, 225, 0)


def to_bytes(image: Tensor) -> Tensor:
    """Return an image (C, H, W) in [0, 1] as bytes (H, W, C), without its mark if it has one."""
    picture = unmarked(image.detach().cpu()[None])[0]
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0)


def outlined(picture: Image.Image, image: Tensor) -> Image.Image:
    """Outline the box that a marked image asks about.

    Args:
        picture: The image drawn at any size.
        image: (C, H, W).

    Returns:
        `picture` itself where the image is not marked, or nothing of its box is left; otherwise in
        RGB with two lines of one pixel round the box, a dark and a bright one.
    """
    if not is_marked(image[None]):
        return picture
    height, width = image.shape[-2:]
    box = boxes_of(image[None])[0].tolist()
    if box[2] <= box[0] or box[3] <= box[1]:
        return picture
    wider, taller = picture.width / width, picture.height / height
    left, right = round(box[0] * wider), round(box[2] * wider)
    top, bottom = round(box[1] * taller), round(box[3] * taller)
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    # Outside the box where there is room, so that nothing in it is hidden.
    for away, colour in ((2, _DARK), (1, _BRIGHT)):
        corners = (
            max(0, left - away),
            max(0, top - away),
            min(drawn.width - 1, right - 1 + away),
            min(drawn.height - 1, bottom - 1 + away),
        )
        draw.rectangle(corners, outline=colour)
    return drawn
