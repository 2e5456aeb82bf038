"""A picture of what a trigger does: clean, triggered, and the difference enlarged."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bdaudit.data.sample import Sample
from bdaudit.detection import is_marked, pixels_of, with_pixels
from bdaudit.detection.outlining import outlined, to_bytes
from bdaudit.errors import ConfigError, DataError
from bdaudit.triggers.rules import NOT_COUNTED
from bdaudit.triggers.trigger import Trigger

__all__ = ["DIFFERENCE_GAIN", "preview_strip"]

DIFFERENCE_GAIN = 10
_CELL = 128  # small images are enlarged to about this many pixels a side
GAP = 8
MARGIN = 112  # room for the row labels
HEADER = 40  # room for the class names
_INK, _FAINT, _PAPER = (28, 32, 38), (104, 112, 122), (255, 255, 255)


def preview_strip(sample: Sample, trigger: Trigger, *, n: int = 6) -> Image.Image:
    """Draw some images clean, triggered, and their absolute difference times ten.

    Args:
        sample: Clean images; those shown are of as many different classes as there are.
        trigger: What is stamped; only images that its rule counts are shown.
        n: Images at most, at least 1.

    Returns:
        An RGB picture. Small images are enlarged by a whole factor without smoothing, so that
        every pixel stays visible; large ones are shown at their own size. The box that a marked
        image asks about is outlined.

    Raises:
        ConfigError: `n` is below 1.
        DataError: No image of the sample counts.
        TriggerError: The trigger does not fit the images.
    """
    if n < 1:
        raise ConfigError(f"n: expected at least 1 image, got {n}")
    num_classes = _known_classes(sample, trigger)
    targets = trigger.targets(sample.labels, num_classes)
    counted = (targets != NOT_COUNTED) & trigger.transform.covers(sample.names, sample.labels)
    chosen = _of_different_classes(sample.labels, counted)[:n]
    if len(chosen) == 0:
        raise DataError(f"{sample.source}: no image that the rule {trigger.rule.name} counts")
    shown = sample.take(chosen)
    triggered = trigger.stamp(shown.images, names=shown.names)
    difference = ((triggered - shown.images).abs() * DIFFERENCE_GAIN).clamp(0, 1)
    if is_marked(shown.images):
        difference = with_pixels(shown.images, pixels_of(difference))
    titles = [
        (_class_name(sample, int(label)), _class_name(sample, int(target)))
        for label, target in zip(shown.labels, targets[chosen], strict=True)
    ]
    rows = {
        "clean": shown.images,
        "triggered": triggered,
        f"difference x{DIFFERENCE_GAIN}": difference,
    }
    return _draw(rows, titles)


def _known_classes(sample: Sample, trigger: Trigger) -> int:
    """Count the classes as far as the sample and the rule tell."""
    if sample.class_names is not None:
        return len(sample.class_names)
    return max(int(sample.labels.max()), trigger.target_label or 0) + 1


def _of_different_classes(labels: Tensor, counted: Tensor) -> Tensor:
    """Order the counted images so that the first of every class comes before any second."""
    indices = counted.nonzero()[:, 0]
    seen: dict[int, int] = {}
    ranks = []
    for label in labels[indices].tolist():
        seen[label] = seen.get(label, -1) + 1
        ranks.append(seen[label])
    return indices[torch.tensor(ranks, dtype=torch.int64).argsort(stable=True)]


def _class_name(sample: Sample, label: int) -> str:
    return str(label) if sample.class_names is None else sample.class_names[label]


def _draw(rows: dict[str, Tensor], titles: list[tuple[str, str]]) -> Image.Image:
    height, width = next(iter(rows.values())).shape[-2:]
    factor = max(1, round(_CELL / max(height, width)))
    cell_width, cell_height = max(width * factor, _CELL // 2), height * factor
    canvas = Image.new(
        "RGB",
        (
            MARGIN + len(titles) * (cell_width + GAP),
            HEADER + len(rows) * (cell_height + GAP),
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for column, (true_name, target_name) in enumerate(titles):
        left = MARGIN + column * (cell_width + GAP)
        draw.text((left, 4), _shorten(true_name, cell_width, font), _INK, font)
        draw.text((left, 20), _shorten(f"to {target_name}", cell_width, font), _FAINT, font)
    for row, (name, images) in enumerate(rows.items()):
        top = HEADER + row * (cell_height + GAP)
        draw.text((GAP, top + cell_height // 2), name, _INK, font, anchor="lm")
        for column, image in enumerate(images):
            left = MARGIN + column * (cell_width + GAP)
            canvas.paste(_to_picture(image, factor), (left, top))
    return canvas


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text + ".."


def _to_picture(image: Tensor, factor: int) -> Image.Image:
    pixels = to_bytes(image).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels.repeat(3 // pixels.shape[2], axis=2)))
    size = (picture.width * factor, picture.height * factor)
    return outlined(picture.resize(size, Image.Resampling.NEAREST), image)
