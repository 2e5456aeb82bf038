"""GTSRB, the German Traffic Sign Recognition Benchmark, as torchvision keeps it on disk."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.classes import folder_number
from bdaudit.data.files import unlisted
from bdaudit.data.folder import class_folder_catalogue, files_catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import path_inside
from bdaudit.foundation.texts import read_text

__all__ = ["find_gtsrb_folder", "gtsrb_catalogue"]

_TEST_LIST = "GT-final_test.csv"


def find_gtsrb_folder(folder: Path) -> Path | None:
    """Find the folder that holds `GTSRB/Training` or `GTSRB/Final_Test`: this one or `gtsrb`."""
    for place in (folder, folder / "gtsrb"):
        if any((place / "GTSRB" / name).is_dir() for name in ("Training", "Final_Test")):
            return place
    return None


def gtsrb_catalogue(folder: Path, *, split: str) -> Catalogue:
    """Describe the `split` of a folder that `find_gtsrb_folder` found.

    Test images are named by their row in the list, which is also the number of their file.

    Raises:
        DataError: The list or an image of it is missing, or the list is damaged.
    """
    if split == "train":
        return class_folder_catalogue(folder / "GTSRB" / "Training", root=folder)
    images = folder / "GTSRB" / "Final_Test" / "Images"
    rows = _read_rows(folder)
    paths = [
        path_inside(images, name, what=f"row {row}'s image", error=DataError)
        for row, (name, _) in enumerate(rows, start=1)
    ]
    moved = next((k for k, p in enumerate(paths) if folder_number(p.stem, str(p)) != k), None)
    renumbered = (
        ()
        if moved is None
        else (f"images are named by their row in {_TEST_LIST}: row {moved} is {paths[moved].name}",)
    )
    return files_catalogue(
        paths,
        [label for _, label in rows],
        names=[str(index) for index in range(len(rows))],
        class_names=None,
        source=f"{folder} ({split})",
        root=folder,
        notes=(*renumbered, *unlisted(images, paths, _TEST_LIST)),
    )


def _read_rows(folder: Path) -> list[tuple[str, int]]:
    path = folder / _TEST_LIST
    text = read_text(path, what="the test images' labels", error=DataError, within=folder)
    rows = csv.DictReader(io.StringIO(text), delimiter=";", skipinitialspace=True)
    found: list[tuple[str, int]] = []
    try:
        for row in rows:
            label = folder_number((row["ClassId"] or "").strip(), str(path))
            if label is None or not row["Filename"]:
                raise ValueError
            found.append((row["Filename"], label))
    # What stands in the rows is not repeated: it may be anything.
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: expected rows with Filename and ClassId (a number), separated by ';'; "
            f"row {len(found) + 1} is none"
        ) from error
    return found
