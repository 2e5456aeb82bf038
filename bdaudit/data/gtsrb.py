"""GTSRB, the German Traffic Sign Recognition Benchmark, as torchvision keeps it on disk."""

from __future__ import annotations

import csv
from pathlib import Path

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.files import is_inside
from bdaudit.data.folder import class_folder_catalogue, files_catalogue
from bdaudit.errors import DataError

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
        return class_folder_catalogue(folder / "GTSRB" / "Training")
    images = folder / "GTSRB" / "Final_Test" / "Images"
    rows = _read_rows(folder / _TEST_LIST)
    paths = [images / name for name, _ in rows]
    for path in paths:
        if not is_inside(path, images):
            raise DataError(f"{folder / _TEST_LIST}: names {path}, which is outside {images}")
    return files_catalogue(
        paths,
        [label for _, label in rows],
        names=[str(index) for index in range(len(rows))],
        class_names=None,
        source=f"{folder} ({split})",
    )


def _read_rows(path: Path) -> list[tuple[str, int]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream, delimiter=";", skipinitialspace=True)
            return [(row["Filename"], int(row["ClassId"])) for row in rows]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; it lists the test labels") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: expected rows with Filename and ClassId, separated by ';': {error}"
        ) from error
