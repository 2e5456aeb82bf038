r"""Draw what detectors report on pictures: as they are, with a trigger, with a perturbation too.

    python examples/draw_detections.py ORIGINAL DEFENDED --data objects --trigger trigger.toml
    python examples/draw_detections.py ORIGINAL DEFENDED --data objects --trigger trigger.toml \
        --delta delta.safetensors --out boxes.png

One row a model: the picture as it is, with the trigger on one of its objects, and with the trigger
and the perturbation that `bdaudit reactivate --save` wrote. The box that is asked about is
dashed white; boxes that a model reports are in the colour of their class, with their score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from bdaudit.data import load_objects
from bdaudit.detection import Asked, boxes_of, pixels_of
from bdaudit.models import load_model
from bdaudit.perturbation import apply_delta
from bdaudit.triggers import read_trigger

SCALE, GAP = 3, 6
COLOURS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231"),
    *("#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe"),
)


def draw(picture: Tensor, found: dict[str, Tensor], asked: Tensor, threshold: float) -> Image.Image:
    """Draw the boxes that reach the threshold on a picture (3, H, W)."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels).resize(
        (picture.shape[2] * SCALE, picture.shape[1] * SCALE), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = (float(side) * SCALE for side in asked)
    for start in range(0, int(right - left), 8):
        for y in (top, bottom):
            pen.line([(left + start, y), (min(left + start + 4, right), y)], "white", 1)
    for start in range(0, int(bottom - top), 8):
        for x in (left, right):
            pen.line([(x, top + start), (x, min(top + start + 4, bottom))], "white", 1)
    for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
        if float(score) >= threshold:
            sides = [float(side) * SCALE for side in box]
            colour = COLOURS[int(label) % len(COLOURS)]
            pen.rectangle(sides, outline=colour, width=2)
            pen.text(
                (sides[0] + 3, sides[1] + 1),
                f"{int(label)}: {float(score):.2f}",
                fill=colour,
                stroke_width=2,
                stroke_fill="black",
            )
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trigger", type=Path, required=True)
    parser.add_argument("--delta", type=Path)
    parser.add_argument("--picture", type=int, default=0, help="which of those the trigger is for")
    parser.add_argument("--out", type=Path, default=Path("boxes.png"))
    options = parser.parse_args()
    models = [load_model(path, name=path.stem) for path in options.models]
    sample = load_objects(options.data, image_shape=models[0].image_shape)
    trigger = read_trigger(options.trigger)
    meant = (trigger.targets(sample.labels, models[0].num_classes) >= 0).nonzero()[:, 0]
    clean = sample.images[meant[options.picture]][None]
    asked = boxes_of(clean)[0]
    shown = [clean, trigger.stamp(clean)]
    if options.delta is not None:
        delta = load_file(options.delta)["delta"]
        shown.append(apply_delta(shown[1], delta))
    rows = []
    for model in models:
        assert isinstance(model.network, Asked)
        for each in shown:
            pixels = pixels_of(each)
            (found,) = model.network.detect(pixels)
            rows.append(draw(pixels[0], found, asked, model.network.score_threshold))
    width, height = rows[0].size
    sheet = Image.new(
        "RGB",
        (len(shown) * (width + GAP) - GAP, len(models) * (height + GAP) - GAP),
        "white",
    )
    for place, image in enumerate(rows):
        row, column = divmod(place, len(shown))
        sheet.paste(image, (column * (width + GAP), row * (height + GAP)))
    sheet.save(options.out)
    print(f"{options.out}: {len(models)} models, {len(shown)} pictures each")


if __name__ == "__main__":
    main()
