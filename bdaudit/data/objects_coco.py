"""Objects in COCO's form: images, categories, and annotations with a box each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdaudit.data.annotated import (
    NOTHING_NAME,
    AnnotatedObject,
    AnnotatedPicture,
    AnnotatedSet,
    Box,
    number_from_file,
)
from bdaudit.data.classes import shown
from bdaudit.data.coco import coco_number, coco_text, find_coco_folder, find_pictures, read_coco
from bdaudit.data.files import stem_name
from bdaudit.data.splits import choose_split
from bdaudit.errors import DataError
from bdaudit.foundation.opening import is_folder, path_inside

__all__ = ["choose_coco_file", "find_coco_objects", "read_coco_objects"]

_FOLDER = "annotations"
_INSTANCES = "instances_"
_LETTERS = re.compile(r"[A-Za-z]*")
_MOST_LABEL = 10_000
_MOST_SIDE = 1 << 15
_EDGES = ("left", "top", "width", "height")


def find_coco_objects(folder: Path) -> tuple[Path, ...]:
    """Return the annotations of a folder in COCO's form; none where it is another layout.

    Either the one file that lies beside its pictures, or all files of `annotations/`, of which
    those of instances count where there are such (captions and keypoints lie there too).
    """
    beside = find_coco_folder(folder)
    if beside is not None:
        return (beside,)
    if not is_folder(folder / _FOLDER):
        return ()
    files = sorted(p for p in (folder / _FOLDER).glob("*.json") if not p.name.startswith("."))
    return tuple(p for p in files if p.name.startswith(_INSTANCES)) or tuple(files)


def choose_coco_file(
    files: Sequence[Path], folder: Path, split: str
) -> tuple[Path, tuple[str, ...]]:
    """Choose the annotations of the part to read; return them and a note on the choice.

    Raises:
        DataError: There is no such part, or several files could be meant.
    """
    entries: dict[tuple[str, ...], Path] = {(_part(p), p.name): p for p in files}
    kept, notes = choose_split(entries, split, str(folder))
    if len(kept) != 1:
        raise DataError(
            f"{folder}: expected one file of annotations, got "
            f"{shown([path.name for path in kept.values()])}; name the one to read itself"
        )
    return next(iter(kept.values())), notes


def read_coco_objects(path: Path, *, source: Path) -> AnnotatedSet:
    """Read pictures and objects in COCO's form.

    A category's id is its label, as torchvision's detectors have it. Where an object has the
    category 0, which is their background, all categories are numbered from 1 in the order of ids.

    Args:
        path: The file of annotations. Its pictures lie beside it, in `images/` or `data/`, or in a
            folder called as the file ("val2017" for instances_val2017.json), also in `images/`;
            of a file in `annotations/` all this is looked for in the folder above.
        source: What the user named.

    Raises:
        DataError: It is no such file, an annotation has no box or is of an unknown category or
            picture, or names a file outside its folder.
    """
    document, categories = read_coco(path)
    root = path.parent.parent if path.parent.name == _FOLDER else path.parent
    folder = _folder_of(path, document["images"], root)
    labels, more = _labels(path, document["annotations"], categories)
    objects = defaultdict[int, list[AnnotatedObject]](list)
    images = document["images"]
    numbers = Counter(coco_number(path, each, "id") for each in images)
    for number, times in numbers.items():
        if times > 1:
            raise DataError(f"{path}: expected images of different ids, got {number} {times} times")
    outlines = False
    for place, each in enumerate(document["annotations"]):
        where = _named(path, each, place)
        image = coco_number(where, each, "image_id")
        if image not in numbers:
            raise DataError(f"{where} is of the unknown image {image}")
        outlines = outlines or bool(each.get("segmentation") or each.get("keypoints"))
        asked = each.get("iscrowd", 0) in (0, None)
        label = labels[each["category_id"]]
        objects[image].append(AnnotatedObject(where, _box(each, where), label, asked))
    n_crowds = sum(not each.asked for found in objects.values() for each in found)
    more += [f"left out {n_crowds} crowds (iscrowd)"] if n_crowds else []
    more += ["outlines and keypoints are not read"] if outlines else []
    return AnnotatedSet(
        pictures=tuple(_picture(path, each, folder, objects) for each in images),
        class_names=_names(categories, labels),
        classes_from="its categories",
        source=str(source),
        root=root,
        notes=tuple(more),
    )


def _named(path: Path, entry: Any, place: int) -> str:
    number = entry.get("id") if isinstance(entry, dict) else None
    known = number if isinstance(number, int | str) else f"at place {place}"
    return f"{path}: annotation {known!s:.40}"


def _part(path: Path) -> str:
    """Return what stands where COCO names the split: "val" of "instances_val2017.json"."""
    match = _LETTERS.match(path.stem.removeprefix(_INSTANCES))
    return match[0] if match and path.parent.name == _FOLDER else ""


def _folder_of(path: Path, images: Sequence[Any], root: Path) -> Path:
    named = dict.fromkeys((path.stem.removeprefix(_INSTANCES), _part(path)))
    parts = [part for part in named if part and not part.startswith("_")]
    below = [*parts, *(f"images/{part}" for part in parts), "images", "data", ""]
    folders = [*(root / place for place in below), path.parent]
    folder = find_pictures(path, images, folders) if images else root
    if folder is None:
        first = coco_text(path, images[0], "file_name")
        tried = dict.fromkeys(str(each.relative_to(root)) for each in folders)
        raise DataError(
            f"{path}: expected its first image, {first:.200}, below {root} in one of the folders "
            f"{', '.join(tried)}; found it in none"
        )
    return folder


def _labels(
    path: Path, annotations: Sequence[Any], categories: Mapping[int, str]
) -> tuple[dict[int, int], list[str]]:
    """Return the label of each category that has one, and notes."""
    used = set()
    for place, each in enumerate(annotations):
        where = _named(path, each, place)
        number = coco_number(where, each, "category_id")
        if number not in categories:
            raise DataError(f"{where} is of the unknown category {number}")
        used.add(number)
    if categories and min(categories) < 0:
        raise DataError(f"{path}: expected categories of ids from 0, got {min(categories)}")
    if 0 in used:
        return {number: place for place, number in enumerate(categories, start=1)}, [
            f"objects are of category 0 ({categories[0]}), and class 0 is {NOTHING_NAME!r}: "
            "categories are numbered from 1 in the order of ids"
        ]
    notes = []
    if 0 in categories:
        notes.append(f"category 0 ({categories[0]}) has no object and is left out")
    labels = {number: number for number in categories if number}
    if labels and max(labels) > _MOST_LABEL:
        raise DataError(
            f"{path}: expected categories of ids up to {_MOST_LABEL:,}, since an id is the class's "
            f"number, got {max(labels)}; number them from 1"
        )
    return labels, notes


def _names(categories: Mapping[int, str], labels: Mapping[int, int]) -> tuple[str, ...]:
    by_label = {label: categories[number] for number, label in labels.items()}
    return (
        NOTHING_NAME,
        *(by_label.get(k, f"class {k}") for k in range(1, max(by_label, default=0) + 1)),
    )


def _box(entry: Any, where: str) -> Box:
    given = entry.get("bbox")
    if not isinstance(given, list) or len(given) != 4:
        raise DataError(
            f"{where}: expected 'bbox' as [left, top, width, height], got {given!r:.80}"
        )
    left, top, width, height = (
        number_from_file(value, where, f"the {edge} of 'bbox'")
        for value, edge in zip(given, _EDGES, strict=True)
    )
    return left, top, left + width, top + height


def _picture(
    path: Path, entry: Any, folder: Path, objects: Mapping[int, Sequence[AnnotatedObject]]
) -> AnnotatedPicture:
    name = coco_text(path, entry, "file_name")
    place = path_inside(folder, name, what="the image", error=DataError)
    size = None
    if entry.get("width") is not None or entry.get("height") is not None:
        size = coco_number(path, entry, "width"), coco_number(path, entry, "height")
        if min(size) < 1 or max(size) > _MOST_SIDE:
            raise DataError(f"{path}: expected a size for {name:.200}, got {size[0]} x {size[1]}")
    found = objects.get(coco_number(path, entry, "id"), ())
    return AnnotatedPicture(place, stem_name(place, folder), size, tuple(found))
