"""Pictures with annotated objects, in COCO's form and in Pascal VOC's layout."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.data import Sample, load_objects, load_sample
from bdaudit.detection import NOTHING, boxes_of, is_marked
from bdaudit.errors import ConfigError, DataError

SIDE = 24


def save(path: Path, k: int, *, size: tuple[int, int] = (SIDE, SIDE), grey: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    pixels = np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(*boxes: tuple[int, int, list[Any]], **changes: Any) -> dict[str, Any]:
    """Two pictures, and objects as (picture, category, box)."""
    found = boxes or ((0, 1, [2, 3, 6, 5]), (0, 3, [12, 12, 8, 8]), (1, 3, [4, 4, 5, 7]))
    return {
        "images": [
            {"id": k + 5, "file_name": f"p{k}.png", "width": SIDE, "height": SIDE} for k in (0, 1)
        ],
        "annotations": [
            {"id": 70 + place, "image_id": k + 5, "category_id": category, "bbox": box}
            for place, (k, category, box) in enumerate(found)
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        **changes,
    }


def set_of(folder: Path, document: dict[str, Any]) -> Path:
    for k in (0, 1):
        save(folder / f"p{k}.png", k)
    write(folder / "_annotations.coco.json", json.dumps(document))
    return folder


def test_each_box_of_coco_is_an_image(tmp_path: Path) -> None:
    sample = load_objects(set_of(tmp_path, coco()))
    assert sample.names == ("p0#0", "p0#1", "p0#empty", "p1#0", "p1#empty")
    assert sample.labels.tolist() == [1, 3, NOTHING, 3, NOTHING]
    assert sample.class_names == ("nothing", "cat", "class 2", "dog")
    places = sample.places
    assert places is not None
    assert places.pictures.tolist() == [0, 0, 0, 1, 1]
    assert places.boxes[[0, 1, 3]].tolist() == [[2, 3, 8, 8], [12, 12, 20, 20], [4, 4, 9, 11]]
    assert [labels.tolist() for _, labels in places.annotated] == [[1, 3], [3]]
    assert torch.equal(places.annotated[0][0], places.boxes[:2])
    assert is_marked(sample.images)
    assert torch.equal(boxes_of(sample.images), places.boxes)
    for image, picture in zip(sample.images, places.pictures.tolist(), strict=True):
        pixels = np.asarray(Image.open(tmp_path / f"p{picture}.png"))
        assert torch.equal((image[:3] * 255).round().byte(), torch.tensor(pixels).permute(2, 0, 1))
    again = load_objects(tmp_path / "_annotations.coco.json")
    assert again.sha256 == sample.sha256
    assert again.names == sample.names


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "images"])
def test_coco_as_it_unpacks(tmp_path: Path, pictures: str) -> None:
    for part in ("train2017", "val2017"):
        write(tmp_path / "annotations" / f"instances_{part}.json", json.dumps(coco()))
        write(tmp_path / "annotations" / f"captions_{part}.json", "{}")
    for k in (0, 1):
        save(tmp_path / pictures / f"p{k}.png", k)
    sample = load_objects(tmp_path)
    assert sample.names == load_objects(set_of(tmp_path / "flat", coco())).names
    assert "read the part 'val', not 'train'" in sample.notes
    by_file = load_objects(tmp_path / "annotations" / "instances_val2017.json")
    assert by_file.sha256 == sample.sha256


def test_the_held_out_part_is_read(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        set_of(tmp_path / part, coco())
    (tmp_path / "classes.txt").write_text("not looked at\n")
    assert "read the part 'valid', not 'train'" in load_objects(tmp_path).notes
    (tmp_path / "valid").rename(tmp_path / ".valid")
    (tmp_path / ".valid" / "_annotations.coco.json").unlink()
    with pytest.raises(DataError, match="expected a part called test or validation, got train"):
        load_objects(tmp_path)


def test_category_0_is_left_out_where_no_object_has_it(tmp_path: Path) -> None:
    categories = [{"id": k, "name": name} for k, name in enumerate(("pets", "cat", "dog"))]
    without = coco((0, 1, [2, 3, 6, 5]), (1, 2, [2, 3, 6, 5]), categories=categories)
    sample = load_objects(set_of(tmp_path, without))
    assert sample.class_names == ("nothing", "cat", "dog")
    assert "category 0 (pets) has no object and is left out" in sample.notes
    numbered = coco((0, 0, [2, 3, 6, 5]), (1, 2, [2, 3, 6, 5]), categories=categories)
    sample = load_objects(set_of(tmp_path, numbered))
    assert sample.class_names == ("nothing", "pets", "cat", "dog")
    assert sorted({*sample.labels.tolist()}) == [0, 1, 3]
    assert any("numbered from 1" in note for note in sample.notes)


def test_crowds_are_left_out_and_nothing_empty_touches_them(tmp_path: Path) -> None:
    document = coco((0, 1, [0, 0, 4, 4]), (0, 3, [0, 4, 24, 20]), (1, 3, [4, 4, 5, 7]))
    document["annotations"][1]["iscrowd"] = 1
    sample = load_objects(set_of(tmp_path, document))
    # Beside the crowd there is room for 20 x 4 pixels, and objects are 4 x 4 and 5 x 7.
    for seed in range(5):
        sample = load_objects(tmp_path, seed=seed)
        assert sample.names[0] == "p0#0"
        assert "p0#1" not in sample.names
        assert sample.places is not None
        for k, name in enumerate(sample.names):
            if name == "p0#empty":
                assert sample.places.boxes[k, 3] <= 4
                assert sample.places.boxes[k, 0] >= 4
    assert "left out 1 crowds (iscrowd)" in sample.notes
    assert sample.places is not None
    assert sample.places.annotated[0][1].tolist() == [1]


def test_empty_boxes_touch_nothing_and_are_as_large_as_objects(tmp_path: Path) -> None:
    boxes = tuple((k % 2, 1 + k % 2 * 2, [3 * k, 3 * k, 5, 4 + k]) for k in range(5))
    set_of(tmp_path, coco(*boxes))
    seen = set()
    for seed in range(12):
        places = load_objects(tmp_path, seed=seed, image_shape=(4, 30, 36)).places
        assert places is not None
        labels = load_objects(tmp_path, seed=seed, image_shape=(4, 30, 36)).labels
        for box, picture, label in zip(places.boxes, places.pictures, labels, strict=True):
            if label != NOTHING:
                continue
            left, top, right, bottom = box.tolist()
            seen.add((left, top))
            assert 0 <= left < right <= 36
            assert 0 <= top < bottom <= 30
            assert right - left == 8  # 5 of 24 pixels, of 36, to whole ones
            for other in places.annotated[int(picture)][0].tolist():
                apart = left >= other[2] or right <= other[0]
                assert apart or top >= other[3] or bottom <= other[1]
    assert len(seen) > 8


def test_without_room_there_is_no_empty_box(tmp_path: Path) -> None:
    sample = load_objects(set_of(tmp_path, coco((0, 1, [0, 0, 24, 24]), (1, 3, [1, 1, 22, 23]))))
    assert sample.names == ("p0#0", "p1#0")
    assert "2 pictures have no room for an empty box" in sample.notes
    with pytest.raises(DataError, match="objects of two classes, or pictures with room"):
        load_objects(set_of(tmp_path, coco(*((k, 1, [0, 0, 24, 24]) for k in (0, 1)))))


def test_sizes_are_brought_to_one_and_boxes_with_them(tmp_path: Path) -> None:
    document = coco((0, 1, [2, 3, 6, 5]), (1, 3, [24, 6, 12, 3]), (1, 1, [0, 0, 3, 3]))
    document["images"][1] |= {"width": 48, "height": 12}
    set_of(tmp_path, document)
    save(tmp_path / "p1.png", 1, size=(48, 12), grey=True)
    with pytest.raises(
        DataError, match=r"24 x 24 \(p0\) and 48 x 12 \(p1\); pass --input-size HxW"
    ):
        load_objects(tmp_path)
    sample = load_objects(tmp_path, image_shape=(4, 24, 24))
    assert sample.images.shape[1:] == (4, 24, 24)
    assert sample.places is not None
    assert sample.places.boxes[sample.names.index("p1#0")].tolist() == [12, 12, 18, 18]
    assert "p1#1" not in sample.names
    assert {
        "1 objects of less than 2 pixels a side were left out",
        "1 of 2 images: grey repeated to 3 channels",
        "1 of 2 images resized from 12x48 to 24x24",
    } <= set(sample.notes)
    image = sample.images[sample.names.index("p1#0")]
    assert torch.equal(image[0], image[2])
    for each in document["images"]:
        del each["width"], each["height"]
    set_of(tmp_path, document)
    save(tmp_path / "p1.png", 1, size=(48, 12), grey=True)
    assert load_objects(tmp_path, image_shape=(4, 24, 24)).sha256 == sample.sha256


def test_a_limit_keeps_the_shares_and_decodes_only_what_is_chosen(tmp_path: Path) -> None:
    boxes = tuple(
        (k // 8, 1 + 2 * (k % 2), [6 * (k % 4), 6 * (k % 8 // 4), 5, 5]) for k in range(9)
    )
    set_of(tmp_path, coco(*boxes))
    (tmp_path / "p1.png").write_bytes(b"no picture")
    chosen = next(
        sample
        for seed in range(30)
        if (sample := sampled(tmp_path, limit=4, seed=seed)) is not None
    )
    assert len(chosen) == 4
    assert sorted(chosen.labels.tolist()).count(1) in (1, 2)
    with pytest.raises(DataError, match="1 of 2 images cannot be read"):
        load_objects(tmp_path)
    with pytest.raises(ConfigError, match="at least 2"):
        load_objects(tmp_path, limit=1)


def sampled(path: Path, **options: Any) -> Sample | None:
    try:
        return load_objects(path, **options)
    except DataError:
        return None


def test_the_digest_is_of_pictures_labels_and_boxes(tmp_path: Path) -> None:
    digests = {
        load_objects(set_of(tmp_path, coco((0, category, [2, 3, width, 5]), (1, 3, last)))).sha256
        for category, width, last in (
            (1, 6, [4, 4, 5, 7]),
            (3, 6, [4, 4, 5, 7]),
            (1, 6.25, [4, 4, 5, 7]),
            (1, 6, [4, 4, 5, 8]),
        )
    }
    assert len(digests) == 4


def test_class_names_given(tmp_path: Path) -> None:
    set_of(tmp_path, coco())
    for given in (["cat", "fox", "dog"], ["background", "cat", "fox", "dog"]):
        sample = load_objects(tmp_path, classes=given)
        assert sample.class_names == ("nothing", "cat", "fox", "dog")
        assert sample.classes_from == "the class names given"
    listed = write(tmp_path / "names.txt", "cat\nfox\ndog\n")
    assert load_objects(tmp_path, classes=listed).class_names == sample.class_names
    with pytest.raises(DataError, match="must have the same order"):
        load_objects(tmp_path, classes=["dog", "fox", "cat"])
    with pytest.raises(DataError, match="3 classes"):
        load_objects(tmp_path, classes=["cat", "dog"])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([2, 3, 0, 5], "annotation 70: expected a box of a width above 0"),
        ([2, 3, 4, -5], "annotation 70: expected a box of a height above 0"),
        ([20, 3, 9, 5], "annotation 70: expected a box inside the picture of 24 x 24"),
        ([25, 3, 1, 5], "annotation 70: expected a box inside"),
        ([2, 3, "six", 5], "annotation 70: expected a number for the width of 'bbox', got 'six'"),
        ([2, None, 6, 5], "annotation 70: expected a number for the top of 'bbox', got 'NoneType'"),
        ([2, 3, 6], "annotation 70: expected 'bbox' as"),
        ([2, float("nan"), 6, 5], "NaN is no number"),
        (["nan", 3, 6, 5], "annotation 70: expected a number for the left of 'bbox', got 'nan'"),
    ],
)
def test_boxes_that_are_refused(tmp_path: Path, box: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as found:
        load_objects(set_of(tmp_path, coco((0, 1, box), (1, 3, [2, 3, 6, 5]))))
    assert "_annotations.coco.json" in str(found.value)


def test_a_box_that_sticks_out_a_little_is_clipped(tmp_path: Path) -> None:
    sample = load_objects(set_of(tmp_path, coco((0, 1, [-1, 3, 9, 5]), (1, 3, [4, 4, 5, 20.5]))))
    assert sample.places is not None
    assert sample.places.annotated[0][0].tolist() == [[0, 3, 8, 8]]
    assert sample.places.annotated[1][0].tolist() == [[4, 4, 9, 24]]
    assert "2 boxes that stick out of their pictures were clipped" in sample.notes


IMAGE = {"id": 5, "file_name": "p0.png", "width": SIDE, "height": SIDE}
OTHER = IMAGE | {"id": 6, "file_name": "p1.png"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": []}, "expected pictures with annotated objects, found none"),
        ({"annotations": [7]}, "annotation at place 0: expected a whole number for"),
        ({"categories": [{"id": 1, "name": "cat"}]}, "annotation 71 is of the unknown category 3"),
        ({"categories": [{"id": k, "name": "cat"} for k in (1, 3)]}, "look the same"),
        ({"categories": [{"id": k, "name": f"{k}"} for k in (1, 3, 10**6)]}, "ids up to 10,000"),
        ({"categories": [{"id": k, "name": f"{k}"} for k in (1, 3, -1)]}, "ids from 0, got -1"),
        ({"images": [IMAGE]}, "annotation 72 is of the unknown image 6"),
        ({"images": [IMAGE, OTHER, IMAGE]}, "images of different ids, got 5 2 times"),
        ({"images": [IMAGE, OTHER | {"file_name": "p0.png"}]}, "different names, got p0.png and"),
        ({"images": [IMAGE, OTHER | {"file_name": "../p1.png"}]}, "outside the folder"),
        ({"images": [IMAGE, OTHER | {"file_name": "/etc/x.png"}]}, "outside the folder"),
        ({"images": [IMAGE, OTHER | {"file_name": "away.png"}]}, "outside the folder|leads out"),
        ({"images": [IMAGE | {"file_name": "q.png"}, OTHER]}, "expected its first image, q.png"),
        ({"images": [IMAGE, OTHER | {"file_name": "q.png"}]}, "1 of 2 images cannot be read"),
        (
            {"images": [IMAGE, OTHER | {"width": 23}]},
            "as its annotations say, got 24 x 24|one size",
        ),
        ({"images": [IMAGE, OTHER | {"width": 0}]}, "expected a size for p1.png, got 0 x 24"),
    ],
)
def test_cocos_that_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    outside = save(tmp_path / "outside.png", 3)
    inside = set_of(tmp_path / "set", coco(**changes))
    (inside / "away.png").symlink_to(outside)
    with pytest.raises(DataError, match=said):
        load_objects(inside)


def test_annotations_of_another_size_than_the_picture(tmp_path: Path) -> None:
    set_of(tmp_path, coco())
    save(tmp_path / "p1.png", 1, size=(20, 24))
    with pytest.raises(DataError, match=r"p1\.png: expected 24 x 24 pixels.*got 20 x 24"):
        load_objects(tmp_path)


def test_what_is_no_set_of_objects(tmp_path: Path) -> None:
    save(tmp_path / "cats" / "a.png", 0)
    with pytest.raises(DataError, match="expected pictures with objects in COCO's form"):
        load_objects(tmp_path)
    with pytest.raises(DataError, match=r"got a file '\.png'"):
        load_objects(tmp_path / "cats" / "a.png")
    with pytest.raises(DataError, match="expected a folder or a file of annotations"):
        load_objects(tmp_path / "none")
    set_of(tmp_path / "set", coco())
    with pytest.raises(ConfigError, match=r"expected 4 channels.*pass --image-shape 4,8,8"):
        load_objects(tmp_path / "set", image_shape=(3, 8, 8))
    with pytest.raises(DataError, match="--task detection"):
        load_sample(tmp_path / "set")


# --- Pascal VOC -----------------------------------------------------------------------------------


def annotation(*objects: str, head: str = "", size: int = SIDE) -> str:
    return (
        f"{head}<annotation><filename>../../secret.jpg</filename><size><width>{size}</width>"
        f"<height>{size}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def thing(name: str, *box: float | str, difficult: int = 0) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in sides)
    # Parts of an object have boxes of their own, which are no objects.
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{inner}</bndbox>{part}</object>"
    )


def voc(folder: Path, **annotations: str) -> Path:
    for k, (name, text) in enumerate(annotations.items()):
        save(folder / "JPEGImages" / f"{name}.png", k)
        write(folder / "Annotations" / f"{name}.xml", text)
    return folder


def test_each_box_of_voc_is_an_image(tmp_path: Path) -> None:
    voc(
        tmp_path / "VOC2007",
        p0=annotation(thing("cat", 3, 4, 8, 8), thing("dog", 13, 13, 20, 20)),
        p1=annotation(thing("dog", 5, 5, 9, 11)),
        p2=annotation(thing("ant", 1, 1, 9, 9)),
    )
    write(tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt", "p0\np1  1\n")
    write(tmp_path / "VOC2007" / "ImageSets" / "Main" / "train.txt", "p2\n")
    write(tmp_path / "VOC2007" / "ImageSets" / "Main" / "cat_test.txt", "p0  1\np1 -1\n")
    sample = load_objects(tmp_path)
    assert sample.names == ("p0#0", "p0#1", "p0#empty", "p1#0", "p1#empty")
    # Classes of the other part keep their numbers.
    assert sample.class_names == ("nothing", "ant", "cat", "dog")
    assert sample.labels.tolist() == [2, 3, 0, 3, 0]
    assert "read the part 'test', not 'train'" in sample.notes
    as_coco = load_objects(set_of(tmp_path / ".coco", coco()))
    assert sample.places is not None
    assert as_coco.places is not None
    assert torch.equal(sample.places.boxes, as_coco.places.boxes)
    assert torch.equal(sample.images, as_coco.images)
    by_list = load_objects(tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt")
    assert by_list.sha256 == sample.sha256
    given = load_objects(tmp_path / "VOC2007", classes=["dog", "cat"])
    assert given.labels.tolist() == [2, 1, 0, 1, 0]
    assert given.class_names == ("nothing", "dog", "cat")
    (tmp_path / "VOC2007" / "classes.txt").write_text("cat\ndog\n")
    assert load_objects(tmp_path).labels.tolist() == [1, 2, 0, 2, 0]


def test_difficult_objects_are_left_out(tmp_path: Path) -> None:
    first = annotation(thing("cat", 0, 0, 8, 8), thing("dog", 1, 9, 24, 24, difficult=1), size=0)
    sample = load_objects(voc(tmp_path, p0=first, p1=annotation(thing("dog", 2, 2, 20, 22))))
    assert "left out 1 objects marked as difficult" in sample.notes
    assert "p0#1" not in sample.names
    assert sample.places is not None
    assert sample.places.boxes[0].tolist() == [0, 0, 8, 8]
    for box, name in zip(sample.places.boxes, sample.names, strict=True):
        if name == "p0#empty":
            assert box[3] <= 8


DOG = thing("dog", 2, 2, 20, 22)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (annotation(DOG, head='<!DOCTYPE annotation [<!ENTITY x "y">]>'), "declaration"),
        (annotation(DOG, head='<!doctype annotation SYSTEM "/etc/passwd">'), "declaration"),
        (annotation(DOG.replace("dog", "&x;")), "undefined entity"),
        (annotation(DOG)[:-5], "p0.xml: expected an annotation as Pascal VOC has them"),
        ("<html></html>", "got <html>"),
        (annotation(thing("dog", 2, 2, "nan", 22)), "object 0: expected a number for <xmax>"),
        (annotation(thing("dog", 2, 2, 1, 22)), "object 0: expected a box of a width above 0"),
        (annotation(DOG, thing("dog", 2, 2, 40, 22)), "object 1: expected a box inside"),
        (annotation(thing(" ", 2, 2, 20, 22)), "expected a text for <name>"),
        (annotation("<object><name>dog</name></object>"), "object 0: expected a <bndbox>"),
        (annotation(thing("nothing", 2, 2, 20, 22)), "class names 1 and"),
        (annotation(DOG, size=SIDE + 1), "as its annotations say, got 24 x 24|one size"),
    ],
)
def test_vocs_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    voc(tmp_path, p0=text, p1=annotation(thing("cat", 3, 4, 8, 8)))
    with pytest.raises(DataError, match=said):
        load_objects(tmp_path)


def test_declarations_are_found_in_other_encodings(tmp_path: Path) -> None:
    voc(tmp_path, p0="", p1=annotation(thing("cat", 3, 4, 8, 8)))
    head = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY x "y">]>'
    path = tmp_path / "Annotations" / "p0.xml"
    path.write_bytes(annotation(DOG, head=head).encode("utf-16"))
    with pytest.raises(DataError, match="declaration"):
        load_objects(tmp_path)
    path.write_bytes(annotation(DOG, head=head.split("<!")[0]).encode("utf-16"))
    assert "p0#0" in load_objects(tmp_path).names


def test_lists_and_pictures_of_voc_stay_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret.xml", annotation(DOG))
    secret = save(tmp_path / "secret.png", 4)
    folder = voc(tmp_path / "set", p0=annotation(DOG), p1=annotation(thing("cat", 3, 4, 8, 8)))
    listed = write(folder / "ImageSets" / "Main" / "test.txt", "p0\n../../secret\n")
    with pytest.raises(DataError, match="outside the folder"):
        load_objects(folder)
    listed.write_text("p0\np0\n")
    with pytest.raises(DataError, match="names a picture for the second time"):
        load_objects(folder)
    listed.write_text("p0\np1\n")
    (folder / "JPEGImages" / "p0.jpg").symlink_to(secret)
    with pytest.raises(DataError, match=r"expected one picture p0\.jpg .* got p0\.jpg, p0\.png"):
        load_objects(folder)
    (folder / "JPEGImages" / "p0.png").unlink()
    with pytest.raises(DataError, match="1 of 2 images cannot be read"):
        load_objects(folder)


# --- the set that anyone can make -----------------------------------------------------------------

EXAMPLES = Path(__file__).parents[2] / "examples"


def make(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = ("--pictures", "2", "--test", "6", "--side", "48", "--voc")
    monkeypatch.setattr(sys, "argv", ["make_objects.py", str(source), "--out", str(out), *sizes])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "make_objects.py"), run_name="__main__")
    return out


def test_the_made_set_is_the_same_in_both_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emoji = [("Flags", 40, 20), ("Food", 50, 64), ("Food", 64, 4), ("Component", 64, 64)]
    entries = []
    for k, (category, width, height) in enumerate(emoji):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[:height, :width] = 40 * k, 99, 200, 255
        entries.append({"category": category, "image": f"{k}.png"})
        path = tmp_path / "source" / "img" / "vendor" / "64" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    write(tmp_path / "source" / "emoji.json", json.dumps(entries))
    made = make(tmp_path / "source", tmp_path / "made", monkeypatch)
    sample, voc = load_objects(made), load_objects(made / "voc")
    assert sample.class_names == voc.class_names == ("nothing", "Flags", "Food")
    assert sample.labels.tolist() == voc.labels.tolist()
    assert set(sample.labels.tolist()) == {0, 1, 2}
    assert sample.places is not None
    assert voc.places is not None
    assert torch.equal(sample.places.boxes, voc.places.boxes)
    # Flags are twice as wide as high, and what stands for food is a little higher than wide.
    sides = sample.places.boxes[:, 2:] - sample.places.boxes[:, :2]
    for label, (width, height) in zip(sample.labels.tolist(), sides.tolist(), strict=True):
        assert 5 <= min(width, height) <= max(width, height) <= 20
        assert label == 0 or (width > height) == (label == 1)
    again = make(tmp_path / "source", tmp_path / "again", monkeypatch)
    assert load_objects(again).sha256 == sample.sha256


def test_an_object_annotated_twice_is_asked_about_once(tmp_path: Path) -> None:
    box, other = (0, 1, [2, 3, 6, 5]), (1, 3, [4, 4, 5, 7])
    once = load_objects(set_of(tmp_path / "once", coco(box, other)))
    twice = load_objects(set_of(tmp_path / "twice", coco(box, box, other)))
    assert sorted(twice.labels.tolist()) == sorted(once.labels.tolist())
    assert twice.places is not None
    assert [len(labels) for _, labels in twice.places.annotated] == [1, 1]
    assert "left out 1 objects that are annotated twice" in twice.notes
