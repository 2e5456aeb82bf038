"""Tiny ImageNet (200 classes, 64x64) as its archive unpacks.

`train/<wnid>/images/*.JPEG`, and `val/images/*.JPEG` with the classes in `val/val_annotations.txt`;
`wnids.txt` lists the classes. The archive's own test images have no labels and are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.files import is_inside
from bdaudit.data.folder import class_folder_catalogue, files_catalogue, read_class_names
from bdaudit.errors import DataError

__all__ = ["find_tiny_imagenet_folder", "tiny_imagenet_catalogue"]

_ANNOTATIONS = Path("val") / "val_annotations.txt"
_CLASSES = "wnids.txt"


def find_tiny_imagenet_folder(folder: Path) -> Path | None:
    """Find the folder that holds `val/val_annotations.txt`: this one or `tiny-imagenet-200`."""
    for place in (folder, folder / "tiny-imagenet-200"):
        if (place / _ANNOTATIONS).is_file():
            return place
    return None


def tiny_imagenet_catalogue(
    folder: Path, *, split: str, class_names: Sequence[str] | None = None
) -> Catalogue:
    """Describe the `split` of a folder that `find_tiny_imagenet_folder` found.

    The "test" split is the validation part: the only held-out one with labels.

    Args:
        folder: Holds `train/` and `val/`.
        split: "train" or "test".
        class_names: The WordNet ids in order of index; without them `wnids.txt`, or else the
            folders of `train/`, in sorted order, as loaders of class folders number them.

    Raises:
        DataError: The annotations are damaged, name a class that is not known, or a file outside
            the folder.
    """
    classes = class_names or _classes(folder)
    if split == "train":
        return class_folder_catalogue(folder / "train", class_names=classes)
    images = folder / "val" / "images"
    index = {name: place for place, name in enumerate(classes)}
    paths, labels = [], []
    for name, wnid in _read_rows(folder / _ANNOTATIONS):
        path = images / name
        if not is_inside(path, images):
            raise DataError(f"{folder / _ANNOTATIONS}: names {path}, which is outside {images}")
        if wnid not in index:
            raise DataError(
                f"{folder / _ANNOTATIONS}: {name} is of class {wnid!r}, which is none of the "
                f"{len(classes)} classes"
            )
        paths.append(path)
        labels.append(index[wnid])
    return files_catalogue(
        paths,
        labels,
        names=[path.stem for path in paths],
        class_names=classes,
        source=f"{folder} ({split})",
    )


def _classes(folder: Path) -> tuple[str, ...]:
    listed = folder / _CLASSES
    if listed.is_file():
        return tuple(sorted(read_class_names(listed)))
    train = folder / "train"
    found = sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []
    if not found:
        raise DataError(f"{folder}: expected the classes in {_CLASSES} or as folders of train/")
    return tuple(found)


def _read_rows(path: Path) -> list[tuple[str, str]]:
    """Read the file's name and class of each row; the bounding box after them is not used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected the validation images' classes: {error}") from error
    rows = [tuple(line.split("\t")[:2]) for line in lines if line.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise DataError(f"{path}: expected rows of a file and its class, separated by tabs")
    return [(row[0], row[1]) for row in rows]
