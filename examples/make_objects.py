"""Make pictures with objects for a detector: emoji of four vendors pasted on random backgrounds.

    for v in twitter google apple facebook; do npm pack emoji-datasource-$v; done
    for f in *.tgz; do mkdir -p unpacked/$f; tar xzf $f -C unpacked/$f; done
    python examples/make_objects.py unpacked --out objects

The nine classes are those of `families/make_emoji.py`, numbered from 1 as torchvision's detectors
number theirs. A picture of 96 x 96 pixels shows one to three objects with a longer side of 20 to 40
pixels (in proportion at another `--side`), each an emoji of a random class and vendor, cut to what
is not transparent, lighter or darker by up to a fifth, on a smooth background of random colours
with a little noise. Emoji much longer than wide are left out. Of two objects at most a tenth of the
smaller one lies under the other. As there, training and test pictures show the same emoji, at other
places, in other sizes and on other backgrounds.

Written are `train/` and `test/`, each with its pictures and `_annotations.coco.json`, and with
`--voc` the same pictures again in the layout of Pascal VOC below `voc/`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from families.make_emoji import read_emoji
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
SHORTEST, LONGEST = 20, 40
MOST_OBJECTS = 3
MOST_COVERED = 0.1
LONGEST_BY_WIDE = 2.5
TRIES = 20

Box = tuple[int, int, int, int]
"""Left, top, width, height."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An object of a picture: its box, and the place of its class in the list of names."""

    box: Box
    place: int


def cut_out(emoji: Image.Image) -> Image.Image | None:
    """Cut an emoji to what can be seen of it; `None` where little or a strip is left."""
    box = emoji.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        return None
    cut = emoji.crop(box)
    return cut if max(cut.size) <= LONGEST_BY_WIDE * min(cut.size) else None


def covered(one: Box, other: Box) -> float:
    """Return the share of the smaller of two boxes that lies in the other."""
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    smaller = min(one[2] * one[3], other[2] * other[3])
    return max(across, 0) * max(down, 0) / smaller


def draw(
    emoji: Sequence[Sequence[Image.Image]], side: int, generator: np.random.Generator
) -> tuple[Image.Image, list[Shown]]:
    """Draw one picture of `side` x `side` pixels; return it with its objects."""
    corners = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    canvas = Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    shown: list[Shown] = []
    for _ in range(int(generator.integers(1, MOST_OBJECTS + 1))):
        place = int(generator.integers(len(emoji)))
        picture = emoji[place][generator.integers(len(emoji[place]))]
        longer = generator.integers(SHORTEST, LONGEST + 1) * side / SIDE
        scale = longer / max(picture.size)
        width, height = (max(2, round(scale * k)) for k in picture.size)
        light = generator.uniform(0.8, 1.2)
        for _ in range(TRIES):
            left = int(generator.integers(0, side - width + 1))
            top = int(generator.integers(0, side - height + 1))
            box = (left, top, width, height)
            if all(covered(box, other.box) <= MOST_COVERED for other in shown):
                small = picture.resize((width, height), Image.Resampling.LANCZOS)
                colours = small.convert("RGB").point(lambda c, k=light: min(255, round(c * k)))
                canvas.paste(colours, (left, top), small.getchannel("A"))
                shown.append(Shown(box, place))
                break
    noisy = np.asarray(canvas, np.float32) + generator.normal(0, 6, (side, side, 3))
    pixels: NDArray[np.uint8] = noisy.clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels), shown


def coco_of(pictures: Sequence[Sequence[Shown]], names: Sequence[str], side: int) -> str:
    """Describe pictures, of which number k is in the file `000k.png`, in COCO's form."""
    images = [
        {"id": k, "file_name": f"{k:05}.png", "width": side, "height": side}
        for k in range(len(pictures))
    ]
    objects = [(k, one) for k, shown in enumerate(pictures) for one in shown]
    annotations = [
        {
            "id": number,
            "image_id": k,
            "category_id": one.place + 1,
            "bbox": list(one.box),
            "area": math.prod(one.box[2:]),
            "iscrowd": 0,
        }
        for number, (k, one) in enumerate(objects, start=1)
    ]
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def write_voc(
    folder: Path, name: str, picture: Image.Image, shown: Sequence[Shown], names: Sequence[str]
) -> None:
    """Write one picture and its annotation in the layout of Pascal VOC."""
    picture.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for one in shown:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = names[one.place]
        ElementTree.SubElement(entry, "difficult").text = "0"
        box = ElementTree.SubElement(entry, "bndbox")
        left, top, width, height = one.box
        # VOC counts pixels from 1 and the last one belongs to the box.
        ends = (left + 1, top + 1, left + width, top + height)
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), ends, strict=True):
            ElementTree.SubElement(box, key).text = str(value)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(folder / "Annotations" / f"{name}.xml", encoding="utf-8")


def main() -> None:
    """Write the pictures of both parts with their annotations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=3000, help="to train on")
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument(
        "--emoji", type=int, help="pictures of emoji in each class, drawn at random; default all"
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of a picture, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voc", action="store_true", help="write Pascal VOC's layout as well")
    options = parser.parse_args()
    cut = {
        name: [part for each in pictures if (part := cut_out(each)) is not None]
        for name, pictures in read_emoji(options.source).items()
    }
    if not cut:
        parser.error(f"{options.source}: no emoji.json with img/VENDOR/64 beside it")
    if options.emoji is not None:
        draws = np.random.default_rng((options.seed, 2))
        cut = {
            name: [each[k] for k in draws.permutation(len(each))[: options.emoji]]
            for name, each in cut.items()
        }
    names, emoji = list(cut), list(cut.values())
    voc = options.out / "voc"
    if options.voc:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (voc / part).mkdir(parents=True, exist_ok=True)
    for number, (part, count) in enumerate((("train", options.pictures), ("test", options.test))):
        folder = options.out / part
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng((options.seed, number))
        all_shown = []
        for k in range(count):
            picture, shown = draw(emoji, options.side, generator)
            picture.save(folder / f"{k:05}.png", compress_level=1)
            all_shown.append(shown)
            if options.voc:
                write_voc(voc, f"{part}-{k:05}", picture, shown, names)
        (folder / "_annotations.coco.json").write_text(coco_of(all_shown, names, options.side))
        if options.voc:
            listed = "".join(f"{part}-{k:05}\n" for k in range(count))
            (voc / "ImageSets" / "Main" / f"{part}.txt").write_text(listed)
    (options.out / "classes.txt").write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    main()
