"""Make the images of emoji.toml: emoji of four vendors on random backgrounds, 32x32, in colour.

    for v in twitter google apple facebook; do npm pack emoji-datasource-$v; done
    for f in *.tgz; do mkdir -p unpacked/$f; tar xzf $f -C unpacked/$f; done
    python examples/families/make_emoji.py unpacked --out emoji

The nine classes are the categories of the data source, its "Component" left out. Each image is one
emoji of a random vendor, 22 to 32 pixels wide, at a random place on a smooth background of random
colours with a little noise; training and test images show the same emoji on other backgrounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 32
LEFT_OUT = "Component"


def read_emoji(folder: Path) -> dict[str, list[Image.Image]]:
    """Return the pictures of each category, of all vendors under `folder`."""
    found: dict[str, list[Image.Image]] = {}
    for listing in sorted(folder.rglob("emoji.json")):
        (pictures,) = (listing.parent / "img").glob("*/64")
        for entry in json.loads(listing.read_text()):
            path = pictures / entry["image"]
            if entry["category"] != LEFT_OUT and path.is_file():
                found.setdefault(entry["category"], []).append(Image.open(path).convert("RGBA"))
    return dict(sorted(found.items()))


def draw(emoji: Image.Image, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Put one emoji on a background; (32, 32, 3)."""
    corners = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    canvas = Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    side = int(generator.integers(22, SIZE + 1))
    left, top = (int(k) for k in generator.integers(0, SIZE - side + 1, 2))
    small = emoji.resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(small, (left, top), small)
    noisy = np.asarray(canvas, np.float32) + generator.normal(0, 6, (SIZE, SIZE, 3))
    return noisy.clip(0, 255).round().astype(np.uint8)


def main() -> None:
    """Write `emoji.npz` and `classes.txt`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=18_000)
    parser.add_argument("--test", type=int, default=5_000)
    options = parser.parse_args()
    emoji = read_emoji(options.source)
    if not emoji:
        parser.error(f"{options.source}: no emoji.json with img/VENDOR/64 beside it")
    options.out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[np.generic]] = {}
    pictures = list(emoji.values())
    for seed, (part, count) in enumerate((("train", options.train), ("test", options.test))):
        generator = np.random.default_rng(seed)
        labels = np.arange(count) % len(emoji)
        generator.shuffle(labels)
        images = [
            draw(pictures[k][generator.integers(len(pictures[k]))], generator) for k in labels
        ]
        arrays[f"images_{part}"] = np.stack(images).transpose(0, 3, 1, 2)
        arrays[f"labels_{part}"] = labels
    np.savez_compressed(options.out / "emoji.npz", **arrays)
    (options.out / "classes.txt").write_text("\n".join(emoji) + "\n")


if __name__ == "__main__":
    main()
