"""A folder of class folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.classes import (
    agree_on_classes,
    folder_number,
    look_up_folders,
    number_folders,
    read_class_names,
)
from bdaudit.data.files import list_images, stem_name
from bdaudit.data.images import ImageShape, read_images
from bdaudit.data.splits import split_of
from bdaudit.errors import DataError

__all__ = [
    "CLASSES_FILE",
    "GIVEN_CLASSES",
    "are_numbers_of",
    "class_folder_catalogue",
    "files_catalogue",
]

CLASSES_FILE = "classes.txt"
GIVEN_CLASSES = "the class names given"


def class_folder_catalogue(
    folder: Path,
    *,
    class_names: Sequence[str] | None = None,
    classes_from: str = GIVEN_CLASSES,
    root: Path | None = None,
) -> Catalogue:
    """Describe a folder that holds one folder of images a class.

    Args:
        folder: Images may lie at any depth below their class folder.
        class_names: Names in order of index; without them the lines of `classes.txt` in the folder
            are taken. A class folder is looked up among them by name. Without either, class folders
            that are all integers are their own index ("7" and "007" are class 7), and others are
            numbered in sorted order of their names, those without images too.
        classes_from: Who gave `class_names`.
        root: The data set's folder, where that is a larger one than `folder`; no link may leave it.

    Raises:
        DataError: There are no class folders or no images, a class folder is not among the names,
            the names and `classes.txt` contradict each other, or a link leads out of the folder.
    """
    notes: list[str] = []
    listed = None
    if (folder / CLASSES_FILE).is_file():
        listed = read_class_names(folder / CLASSES_FILE, within=root or folder)
    if class_names is None:
        class_names, classes_from = listed, CLASSES_FILE
    elif listed is not None:
        note = agree_on_classes(class_names, classes_from, listed, str(folder / CLASSES_FILE))
        notes += [note] if note else []
    found = list_images(folder, root=root)
    notes += found.notes
    loose = [path for path in found.images if path.parent == folder]
    if len(loose) == len(found.images):
        raise DataError(
            f"{folder}: expected one folder of images a class, found "
            f"{len(loose)} images and no class folders with images in them"
        )
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images lie beside the class folders ({loose[0].name}); "
            "move each into the folder of its class"
        )
    if all(split_of(name) is not None for name in found.folders):
        raise DataError(
            f"{folder}: its folders are splits ({', '.join(found.folders)}), not classes; "
            f"give one of them, for instance {folder / found.folders[0]}"
        )
    where = str(folder)
    if class_names is not None and not are_numbers_of(found.folders, class_names, where):
        indices = look_up_folders(found.folders, class_names, where)
    else:
        indices, own_names, more = number_folders(found.folders, where)
        notes += more
        if class_names is None:
            class_names, classes_from = own_names, "its class folders"
    return files_catalogue(
        found.images,
        [indices[path.relative_to(folder).parts[0]] for path in found.images],
        names=[stem_name(path, folder) for path in found.images],
        class_names=class_names,
        source=str(folder),
        notes=notes,
        classes_from=classes_from,
        root=root or folder,
    )


def are_numbers_of(folders: Sequence[str], class_names: Sequence[str], where: str) -> bool:
    """Return whether class folders are indices into the names rather than names themselves."""
    all_numbers = all(folder_number(name, where) is not None for name in folders)
    return all_numbers and set(folders).isdisjoint(class_names)


def files_catalogue(
    paths: Sequence[Path],
    labels: Sequence[int],
    *,
    names: Sequence[str],
    class_names: Sequence[str] | None,
    source: str,
    root: Path,
    notes: Sequence[str] = (),
    classes_from: str = GIVEN_CLASSES,
) -> Catalogue:
    """Describe image files with known labels; they are decoded when read.

    None may be a link out of `root`.
    """

    def read(indices: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        return read_images([paths[int(index)] for index in indices], image_shape, within=root)

    return Catalogue(
        labels=torch.tensor(labels, dtype=torch.int64),
        names=tuple(names),
        class_names=None if class_names is None else tuple(class_names),
        source=source,
        read=read,
        notes=tuple(notes),
        classes_from=classes_from,
    )
