"""Tiny ImageNet (200 classes, 64x64) as its archive unpacks.

`train/<wnid>/images/*.JPEG`, and `val/images/*.JPEG` with the classes in `val/val_annotations.txt`;
`wnids.txt` lists the classes. The archive's own test images have no labels and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.classes import agree_on_classes, read_class_names
from bdaudit.data.files import unlisted
from bdaudit.data.folder import GIVEN_CLASSES, class_folder_catalogue, files_catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import path_inside
from bdaudit.foundation.texts import read_text

__all__ = ["find_tiny_imagenet_folder", "tiny_imagenet_catalogue"]

_ANNOTATIONS = Path("val") / "val_annotations.txt"
_CLASSES = "wnids.txt"
_WNID = re.compile(r"n\d{8}", re.ASCII)


def find_tiny_imagenet_folder(folder: Path) -> Path | None:
    """Find the folder that holds `val/val_annotations.txt`: this one or `tiny-imagenet-200`."""
    for place in (folder, folder / "tiny-imagenet-200"):
        if (place / _ANNOTATIONS).is_file():
            return place
    return None


def tiny_imagenet_catalogue(
    folder: Path,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
) -> Catalogue:
    """Describe the `split` of a folder that `find_tiny_imagenet_folder` found.

    The "test" split is the validation part: the only held-out one with labels.

    Args:
        folder: Holds `train/` and `val/`.
        split: "train" or "test".
        class_names: The WordNet ids in order of index, which must not contradict the folder's own
            list; without them `wnids.txt`, or else the
            folders of `train/`, in sorted order, as loaders of class folders number them.
        classes_from: Who gave `class_names`.

    Raises:
        DataError: The annotations are damaged, name a class that is not known, or a file outside
            the folder.
    """
    own, own_by, notes = _classes(folder)
    if class_names is None:
        class_names, classes_from = own, own_by
    else:
        note = agree_on_classes(class_names, classes_from, own, str(folder / own_by))
        notes = [note] if note else []
    if split == "train":
        train = class_folder_catalogue(
            folder / "train", class_names=class_names, classes_from=classes_from, root=folder
        )
        return replace(train, notes=(*notes, *train.notes))
    images = folder / "val" / "images"
    index = {name: place for place, name in enumerate(class_names)}
    paths, labels = [], []
    for row, (name, wnid) in enumerate(_read_rows(folder), start=1):
        path = path_inside(images, name, what="the image", error=DataError)
        if wnid not in index:
            known = f" ({wnid})" if _WNID.fullmatch(wnid) else ""
            raise DataError(
                f"{folder / _ANNOTATIONS}: the class in row {row}{known} is none of the "
                f"{len(class_names)} classes"
            )
        paths.append(path)
        labels.append(index[wnid])
    return files_catalogue(
        paths,
        labels,
        names=[path.stem for path in paths],
        class_names=class_names,
        source=f"{folder} ({split})",
        root=folder,
        notes=(*notes, *unlisted(images, paths, _ANNOTATIONS.name)),
        classes_from=classes_from,
    )


def _classes(folder: Path) -> tuple[tuple[str, ...], str, list[str]]:
    """Return the classes in sorted order, where they are from, and a note on their order."""
    listed = folder / _CLASSES
    if listed.is_file():
        names = read_class_names(listed, within=folder)
        in_order = tuple(sorted(names))
        if in_order == names:
            return in_order, _CLASSES, []
        note = (
            f"classes are numbered by sorted WordNet id, as loaders of class folders do; in the "
            f"order of {_CLASSES} class 0 would be {names[0]}"
        )
        return in_order, _CLASSES, [note]
    train = folder / "train"
    found = sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []
    if not found:
        raise DataError(f"{folder}: expected the classes in {_CLASSES} or as folders of train/")
    return tuple(found), "train/", []


def _read_rows(folder: Path) -> list[tuple[str, str]]:
    """Read the file's name and class of each row; the bounding box after them is not used."""
    path = folder / _ANNOTATIONS
    text = read_text(path, what="the validation images' classes", error=DataError, within=folder)
    rows = [tuple(line.split("\t")[:2]) for line in text.split("\n") if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise DataError(f"{path}: expected rows of a file and its class, separated by tabs")
    return [(row[0], row[1]) for row in rows]
