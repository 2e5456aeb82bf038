"""An export of classes in COCO's form: images, categories, and one annotation an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.columns import number_labels
from bdaudit.data.folder import GIVEN_CLASSES, files_catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import RECORD_BYTES, is_file, is_folder, path_inside
from bdaudit.foundation.texts import read_json

__all__ = [
    "coco_catalogue",
    "coco_number",
    "coco_text",
    "find_coco_folder",
    "find_pictures",
    "read_coco",
]

_ANNOTATIONS = "_annotations.coco.json"  # as Roboflow exports it
_PARTS = ("images", "annotations", "categories")
_FOLDERS = ("", "images", "data")


def find_coco_folder(folder: Path) -> Path | None:
    """Return the annotations of a folder that is such an export, `None` for any other."""
    path = folder / _ANNOTATIONS
    return path if is_file(path) else None


def read_coco(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Read a file in COCO's form.

    Returns:
        The document, in which `images`, `annotations` and `categories` are lists; and the names of
        the categories by id, in the order of ids.

    Raises:
        DataError: It is no such file, or two categories have one id.
    """
    document = read_json(
        path, what="annotations", error=DataError, limit=RECORD_BYTES, within=path.parent
    )
    if not isinstance(document, dict) or not all(
        isinstance(document.get(part), list) for part in _PARTS
    ):
        raise DataError(f"{path}: expected the lists {', '.join(_PARTS)}, as COCO has them")
    categories = sorted(
        (coco_number(path, each, "id"), coco_text(path, each, "name"))
        for each in document["categories"]
    )
    by_number = dict(categories)
    if len(by_number) != len(categories):
        raise DataError(f"{path}: expected categories of different ids, got one twice")
    return document, by_number


def coco_catalogue(
    path: Path, *, class_names: Sequence[str] | None = None, classes_from: str = GIVEN_CLASSES
) -> Catalogue:
    """Describe images that annotations in COCO's form give one class each.

    Categories are numbered in the order of their ids.

    Args:
        path: The JSON file; images lie in its folder, or in `images/` or `data/` below.
        class_names: Names in order of index, which must not contradict the categories.
        classes_from: Who gave them.

    Raises:
        DataError: It is no such file, gives an image several classes (as for detection), or names
            a file outside its folder.
    """
    document, categories = read_coco(path)
    places = {number: place for place, number in enumerate(categories)}
    by_image: defaultdict[int, set[int]] = defaultdict(set)
    for each in document["annotations"]:
        category = coco_number(path, each, "category_id")
        if category not in places:
            raise DataError(f"{path}: an annotation has the unknown category {category}")
        by_image[coco_number(path, each, "image_id")].add(places[category])
    folders = [path.parent / part for part in _FOLDERS]
    folder = find_pictures(path, document["images"], folders) or path.parent
    paths: list[Path] = []
    labels: list[int] = []
    without = 0
    for each in document["images"]:
        classes = by_image.get(coco_number(path, each, "id"), set())
        if len(classes) > 1:
            raise DataError(
                f"{path}: expected one class an image, got {len(classes)} for the image "
                f"{each['id']}; annotations for detection are read with --task detection"
            )
        if not classes:
            without += 1
            continue
        name = coco_text(path, each, "file_name")
        paths.append(path_inside(folder, name, what="the image", error=DataError))
        labels.extend(classes)
    if len(set(paths)) != len(paths):
        raise DataError(f"{path}: lists an image for the second time")
    names = list(categories.values())
    found = number_labels(
        [names[label] for label in labels],
        where=str(path),
        class_names=class_names,
        classes_from=classes_from,
        own_names=names,
        own_by="its categories",
    )
    notes = [f"skipped {without} images without an annotation"] if without else []
    notes += ["bounding boxes and outlines are not read"] if document["annotations"] else []
    return files_catalogue(
        paths,
        found.indices,
        names=[place.relative_to(folder).with_suffix("").as_posix() for place in paths],
        class_names=found.class_names,
        source=str(path),
        root=path.parent,
        notes=notes,
        classes_from=found.classes_from,
    )


def find_pictures(path: Path, images: Sequence[Any], folders: Sequence[Path]) -> Path | None:
    """Return the first of some folders in which the first image of a file in COCO's form lies.

    The file says nothing about it. `None` where it is in none of them, or there are no images.
    """
    name = coco_text(path, images[0], "file_name") if images else ""
    for folder in folders:
        if name and is_folder(folder):
            place = path_inside(folder, name, what="the image", error=DataError)
            if is_file(place):
                return folder
    return None


def coco_number(where: Path | str, entry: Any, key: str) -> int:
    """Return a whole number of an entry.

    Args:
        where: The file, and which entry where that is known, for the message.
        entry: What should be an object of JSON.
        key: Which of its values.

    Raises:
        DataError: There is none.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1 << 62:
        raise DataError(f"{where}: expected a whole number for {key!r}, got {type(value).__name__}")
    return value


def coco_text(path: Path, entry: Any, key: str) -> str:
    """Return a text of an entry, of at least a character.

    Raises:
        DataError: There is none.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: expected a text for {key!r}, got {type(value).__name__}")
    return value
