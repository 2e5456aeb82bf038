"""The preview strip: geometry and pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.auditing.preview import preview_trigger
from bdaudit.data import from_arrays
from bdaudit.detection import mark
from bdaudit.errors import ConfigError, DataError
from bdaudit.triggers import (
    AllToOne,
    ClassMap,
    OnObject,
    Patch,
    SourceSpecific,
    Trigger,
    preview_strip,
)
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


def test_a_preview_on_pictures_with_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (51, 51, 51)).save(tmp_path / "p.png")
    objects = [(1, [8, 8, 16, 12]), (2, [0, 24, 8, 8])]
    document = {
        "images": [{"id": 1, "file_name": "p.png", "width": 32, "height": 32}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": label, "bbox": box}
            for k, (label, box) in enumerate(objects)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(document))
    Image.new("L", (4, 4), 255).save(tmp_path / "white.png")
    (tmp_path / "t.toml").write_text(
        'kind = "on-object"\n[target]\ngoal = "disappear"\n'
        '[on-object]\nimage = "white.png"\nshare = 0.5\n'
    )
    draw = partial(preview_trigger, tmp_path / "t.toml", data=tmp_path, out=tmp_path / "o.png", n=6)
    draw(task="detection")
    with Image.open(tmp_path / "o.png") as strip:
        assert strip.width == MARGIN + 2 * (128 + GAP)  # two objects; the empty box is none
        top = HEADER + 128 + GAP
        assert strip.getpixel((MARGIN + 16 * 4, top + 14 * 4)) == (255, 255, 255)
        assert strip.getpixel((MARGIN + 10 * 4, top + 10 * 4)) == (51, 51, 51)
    with pytest.raises(ConfigError, match="in no table"):
        draw(task="detection", label_column="label")


def test_the_box_of_a_marked_image_is_outlined_thinly_and_hides_nothing() -> None:
    pictures = torch.full((4, 3, 32, 32), 0.2)
    boxes = torch.tensor([[8.0, 8.0, 24.0, 20.0]] * 3 + [[0.0, 0.0, 32.0, 32.0]])
    sample = replace(from_arrays(pictures, [0, 1, 2, 3]), images=mark(pictures, boxes))
    trigger = Trigger(
        transform=OnObject(image=torch.ones(1, 2, 2), share=0.5), rule=ClassMap((1, 0, 3, 2))
    )
    strip = np.asarray(preview_strip(sample, trigger))
    clean = strip[HEADER : HEADER + 128, MARGIN : MARGIN + 128]
    inside = clean[32:80, 32:96]  # enlarged four times
    assert np.unique(inside).tolist() == [51]
    assert np.unique(clean[31, 31:97], axis=0).tolist() == [[255, 225, 0]]
    assert np.unique(clean[30:82, 97], axis=0).tolist() == [[16, 16, 16]]
    assert np.unique(clean[:30]).tolist() == [51]
    top = HEADER + 128 + GAP
    triggered = strip[top : top + 128, MARGIN : MARGIN + 128]
    assert np.unique(triggered[44:68, 52:76]).tolist() == [255]
    # A box of the whole picture is outlined where the picture ends.
    whole = strip[HEADER : HEADER + 128, MARGIN + 3 * (128 + GAP) :][:, :128]
    assert np.unique(whole[[0, -1]].reshape(-1, 3), axis=0).tolist() == [[255, 225, 0]]
    assert np.unique(whole[1:-1, 1:-1]).tolist() == [51]
