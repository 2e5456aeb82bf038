"""A folder of class folders of images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.files import list_images, stem_name
from bdaudit.data.images import ImageShape, read_images
from bdaudit.errors import DataError

__all__ = ["CLASSES_FILE", "class_folder_catalogue", "files_catalogue", "read_class_names"]

CLASSES_FILE = "classes.txt"
_SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def class_folder_catalogue(folder: Path, *, class_names: Sequence[str] | None = None) -> Catalogue:
    """Describe a folder that holds one folder of images a class.

    Args:
        folder: Images may lie at any depth below their class folder.
        class_names: Names in order of index; without them the lines of `classes.txt` in the folder
            are taken. A class folder is looked up among them by name. Without either, class folders
            that are all integers are their own index ("7" and "007" are class 7), and others are
            numbered in sorted order of their names.

    Raises:
        DataError: There are no class folders or no images, a class folder is not among the names,
            or a link leads out of the folder.
    """
    if class_names is None and (folder / CLASSES_FILE).is_file():
        class_names = read_class_names(folder / CLASSES_FILE)
    paths = list_images(folder)
    loose = [path for path in paths if path.parent == folder]
    folders = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    if not folders:
        raise DataError(
            f"{folder}: expected one folder of images a class, found "
            f"{len(loose)} images and no class folders with images in them"
        )
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images lie beside the class folders ({loose[0].name}); "
            "move each into the folder of its class"
        )
    if _SPLIT_NAMES.issuperset(name.lower() for name in folders):
        raise DataError(
            f"{folder}: its folders are splits ({', '.join(folders)}), not classes; "
            f"give one of them, for instance {folder / folders[0]}"
        )
    indices, class_names = _class_indices(folders, class_names, folder)
    labels = [indices[path.relative_to(folder).parts[0]] for path in paths]
    return files_catalogue(
        paths,
        labels,
        names=[stem_name(path, folder) for path in paths],
        class_names=class_names,
        source=str(folder),
    )


def files_catalogue(
    paths: Sequence[Path],
    labels: Sequence[int],
    *,
    names: Sequence[str],
    class_names: Sequence[str] | None,
    source: str,
) -> Catalogue:
    """Describe image files with known labels; they are decoded when read."""

    def read(indices: Tensor, image_shape: ImageShape | None) -> Tensor:
        return read_images([paths[int(index)] for index in indices], image_shape)

    return Catalogue(
        labels=torch.tensor(labels, dtype=torch.int64),
        names=tuple(names),
        class_names=None if class_names is None else tuple(class_names),
        source=source,
        read=read,
    )


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read class names, one a line in order of index; blank lines at the end are dropped.

    Raises:
        DataError: The file cannot be read, is empty, or names a class twice or not at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected class names, one a line: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not names or "" in names or len(set(names)) != len(names):
        raise DataError(f"{path}: expected one different class name a line, in order of index")
    return names


def _class_indices(
    folders: Sequence[str], class_names: Sequence[str] | None, where: Path
) -> tuple[Mapping[str, int], Sequence[str] | None]:
    """Map class folders to indices; give back the class names as far as they are known."""
    numbers = [int(name) for name in folders if name.isascii() and name.isdecimal()]
    all_numbers = len(numbers) == len(folders)
    if class_names is not None and not (all_numbers and set(folders).isdisjoint(class_names)):
        unknown = [name for name in folders if name not in class_names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], class_names, n=1)
            raise DataError(
                f"{where}: class folder {unknown[0]!r} is not among the {len(class_names)} class "
                f"names" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return {name: class_names.index(name) for name in folders}, class_names
    if all_numbers:
        if len(set(numbers)) != len(numbers):
            raise DataError(f"{where}: two class folders are the same number: {sorted(folders)}")
        return dict(zip(folders, numbers, strict=True)), class_names
    return {name: index for index, name in enumerate(folders)}, folders
