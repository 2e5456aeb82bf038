"""From a path to a sample, whatever is found there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from bdaudit.data.arrays import array_file_catalogue
from bdaudit.data.backdoorbench import backdoorbench_catalogue, find_poisoned_tree
from bdaudit.data.catalogue import Catalogue, read_catalogue
from bdaudit.data.cifar import cifar_catalogue, find_cifar_folder
from bdaudit.data.classes import agree_on_classes, check_class_names, read_class_names
from bdaudit.data.coco import coco_catalogue, find_coco_folder
from bdaudit.data.columns import ANY_COLUMNS, Columns
from bdaudit.data.files import is_inside
from bdaudit.data.folder import GIVEN_CLASSES, class_folder_catalogue
from bdaudit.data.gtsrb import find_gtsrb_folder, gtsrb_catalogue
from bdaudit.data.idx import find_idx_folder, idx_catalogue
from bdaudit.data.images import ImageShape
from bdaudit.data.listed import LIST_SUFFIXES, find_listed_folder, listed_catalogue
from bdaudit.data.packed import find_tar_folder, tar_catalogue, zip_catalogue
from bdaudit.data.parquet import find_parquet_folder, parquet_catalogue
from bdaudit.data.sample import Sample
from bdaudit.data.split import stratified_indices
from bdaudit.data.splits import (
    choose_split_files,
    choose_split_name,
    note_of_split,
    split_of,
)
from bdaudit.data.table_columns import find_table_folder
from bdaudit.data.tiny_imagenet import find_tiny_imagenet_folder, tiny_imagenet_catalogue
from bdaudit.errors import ConfigError, DataError, reads
from bdaudit.foundation.opening import SAMPLE_BYTES, check_file, is_folder

__all__ = [
    "load_poisoned_tree",
    "load_sample",
    "name_classes",
    "read_limited",
    "take_names",
    "with_classes",
]


@reads(DataError)
def load_sample(
    path: str | Path,
    *,
    image_shape: ImageShape | None = None,
    classes: str | Path | Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: Literal["train", "test"] = "test",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Sample:
    """Read a clean labelled sample.

    Args:
        path: A folder of class folders of images, or of parts (`train/`, `test/`) with such; a file
            of images and labels (`.npz`, `.safetensors`, `.parquet`, `.tar`, `.zip`), or that lists
            images (`.csv`, `.tsv`, `.jsonl`, COCO's `.json`); or a folder that holds CIFAR-10,
            CIFAR-100, GTSRB or a data set of MNIST's form as torchvision keeps them, or Tiny
            ImageNet as its archive unpacks. Nothing is downloaded. docs/data.md has each layout.
        image_shape: (C, H, W) the model takes. Images are brought to it: grey to RGB or back,
            resized bilinearly with antialiasing. `None` asks that all agree already.
        classes: Class names in order of index, or a file of them, one a line.
        limit: Most images to read, chosen by `seed` so that every class keeps its share; `None`
            reads all. Images that are not chosen are never decoded.
        seed: For `limit`.
        split: Which part of a data set that comes in two.
        image_column: Of a table or parquet files: the column of images or of their paths; `None`
            for one whose name says so.
        label_column: Likewise the column of labels.

    Returns:
        The sample, on the CPU.

    Raises:
        DataError: Nothing is there, it is none of the above, has no such columns, has
            images of one class only, or images that do not open, disagree in size, or lie outside
            the folder.
        ConfigError: `limit` is below 2.
    """
    path = Path(path)
    if limit is not None and limit < 2:
        raise ConfigError(f"limit: expected at least 2 images (two classes), got {limit}")
    class_names, given_by = name_classes(classes)
    asked = _Asked(
        class_names=class_names,
        given_by=given_by,
        split=split,
        columns=Columns(images=image_column, labels=label_column),
    )
    catalogue = _open(path, asked)
    if asked.columns != ANY_COLUMNS and not catalogue.has_columns:
        raise DataError(
            f"{path}: expected a table or parquet files, since {asked.columns.in_words()} was "
            "asked for, got images in another form; leave that out"
        )
    catalogue = take_names(catalogue, class_names, given_by)
    return read_limited(catalogue, image_shape, limit, seed)


def with_classes(sample: Sample, classes: str | Path | Sequence[str] | None) -> Sample:
    """Return a sample whose classes are named as given.

    Raises:
        DataError: The names cannot be read, or contradict those that the sample has.
    """
    class_names, given_by = name_classes(classes)
    if class_names is not None and int(sample.labels.max()) >= len(class_names):
        raise DataError(
            f"{sample.source}: label {int(sample.labels.max())} is out of range for the "
            f"{len(class_names)} class names given"
        )
    return take_names(sample, class_names, given_by)


_Named = TypeVar("_Named", Catalogue, Sample)


def take_names(source: _Named, class_names: tuple[str, ...] | None, given_by: str) -> _Named:
    """Return a catalogue or a sample with the class names given, if there are any.

    Raises:
        DataError: They contradict those that it has.
    """
    if class_names is None:
        return source
    own = source.class_names
    notes: tuple[str, ...] = source.notes
    if own is not None and own != class_names:
        own_by = f"{source.source} ({source.classes_from})"
        note = agree_on_classes(class_names, given_by, own, own_by)
        notes += (note,) if note else ()
    return replace(source, class_names=class_names, classes_from=given_by, notes=notes)


def name_classes(
    classes: str | Path | Sequence[str] | None,
) -> tuple[tuple[str, ...] | None, str]:
    """Return class names that were given as a list or a file, and who gave them.

    Raises:
        DataError: The file cannot be read, or names repeat, look the same or hold what is not seen.
    """
    if classes is None:
        return None, GIVEN_CLASSES
    if isinstance(classes, str | Path):
        return read_class_names(Path(classes)), str(classes)
    check_class_names(classes, GIVEN_CLASSES)
    return tuple(classes), GIVEN_CLASSES


@reads(DataError)
def load_poisoned_tree(
    path: str | Path,
    *,
    image_shape: ImageShape | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Sample:
    """Read BackdoorBench's poisoned test images, with their true labels and clean test indices.

    The result is *not* clean: it is the triggered side of a pair, and `load_sample` refuses such a
    folder. Its names match those of a clean sample that counts the same test set.

    Args:
        path: A record folder, or the `bd_test_dataset` in it.
        image_shape: As for `load_sample`.
        limit: As for `load_sample`.
        seed: For `limit`.

    Raises:
        DataError: There is no such tree, or it is not as BackdoorBench writes it.
    """
    tree = find_poisoned_tree(Path(path))
    if tree is None:
        raise DataError(f"{path}: expected a BackdoorBench record folder with bd_test_dataset/")
    return read_limited(backdoorbench_catalogue(tree), image_shape, limit, seed)


def read_limited(
    catalogue: Catalogue, image_shape: ImageShape | None, limit: int | None, seed: int
) -> Sample:
    """Read at most `limit` of the images, chosen by `seed` so that every class keeps its share.

    Raises:
        DataError: As `read_catalogue`.
    """
    total = len(catalogue.names)
    indices = torch.arange(total)
    if limit is not None and limit < total:
        generator = torch.Generator().manual_seed(seed)
        # Sorted: a subset keeps the order of the whole.
        indices = stratified_indices(catalogue.labels, limit, generator).sort().values
    return read_catalogue(catalogue, indices, image_shape)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the user says about the data beside its path."""

    class_names: tuple[str, ...] | None
    given_by: str
    split: str
    columns: Columns

    @property
    def naming(self) -> dict[str, Any]:
        return {"class_names": self.class_names, "classes_from": self.given_by}

    @property
    def of_table(self) -> dict[str, Any]:
        return {**self.naming, "asked": self.columns}


def _open(path: Path, asked: _Asked) -> Catalogue:
    if is_folder(path):
        return _open_folder(path, asked)
    check_file(path, limit=SAMPLE_BYTES, what="a folder or a file of images", error=DataError)
    if (reader := _FILES.get(path.suffix.lower())) is not None:
        return reader(path, asked)
    raise DataError(
        f"{path}: expected a folder of class folders, or a file of {', '.join(_FILES)}, "
        f"got '{path.suffix or path.name}'; pickled arrays (.pt, .pkl) are not read, save them "
        "with numpy.savez(images=..., labels=...)"
    )


def _open_folder(folder: Path, asked: _Asked) -> Catalogue:
    if folder.name in {"", ".."}:
        folder = folder.resolve()  # layouts are told by the folder's own name
    if (cifar := find_cifar_folder(folder)) is not None:
        return cifar_catalogue(_in(folder, cifar), split=asked.split)
    if (idx := find_idx_folder(folder)) is not None:
        return idx_catalogue(_in(folder, idx), split=asked.split)
    if (gtsrb := find_gtsrb_folder(folder)) is not None:
        return gtsrb_catalogue(_in(folder, gtsrb), split=asked.split)
    if (tiny := find_tiny_imagenet_folder(folder)) is not None:
        return tiny_imagenet_catalogue(_in(folder, tiny), split=asked.split, **asked.naming)
    if find_poisoned_tree(folder) is not None:
        raise DataError(
            f"{folder}: holds BackdoorBench's poisoned images, not clean ones; give the clean test "
            "set as the data, and this folder as a trigger of kind 'paired'"
        )
    if tables := find_table_folder(folder):
        chosen, notes = choose_split_files(tables, asked.split, str(folder))
        if len(chosen) > 1:
            raise DataError(
                f"{folder}: expected one table for a split, got {', '.join(p.name for p in chosen)}"
            )
        table = listed_catalogue(_in(folder, chosen[0]), **asked.of_table)
        return replace(table, notes=(*notes, *table.notes))
    if (listed := find_listed_folder(folder)) is not None:
        return listed_catalogue(listed, **asked.of_table)
    if (coco := find_coco_folder(folder)) is not None:
        return coco_catalogue(coco, **asked.naming)
    if parquet := find_parquet_folder(folder):
        files = [_in(folder, file) for file in parquet]
        return parquet_catalogue(files, source=folder, split=asked.split, **asked.of_table)
    if shards := find_tar_folder(folder):
        files = [_in(folder, file) for file in shards]
        return tar_catalogue(files, source=folder, split=asked.split, **asked.naming)
    if (part := _part_of(folder, asked.split)) is not None:
        inner = _open_folder(part, asked)
        said = note_of_split(part.name, _folders_in(folder))
        return replace(inner, notes=(said, *inner.notes))
    return class_folder_catalogue(folder, **asked.naming)


def _part_of(folder: Path, split: str) -> Path | None:
    """Return the part to read of a folder whose folders are all splits; `None` of any other."""
    names = _folders_in(folder)
    if not names or any(split_of(name) is None for name in names):
        return None
    return _in(folder, folder / choose_split_name(names, split, str(folder)))


def _folders_in(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _listed(path: Path, asked: _Asked) -> Catalogue:
    return listed_catalogue(path, **asked.of_table)


_FILES: dict[str, Callable[[Path, _Asked], Catalogue]] = {
    ".npz": lambda path, asked: array_file_catalogue(path, split=asked.split),
    ".safetensors": lambda path, asked: array_file_catalogue(path, split=asked.split),
    **dict.fromkeys(LIST_SUFFIXES, _listed),
    ".json": lambda path, asked: coco_catalogue(path, **asked.naming),
    ".parquet": lambda path, asked: parquet_catalogue(
        [path], source=path, split=asked.split, **asked.of_table
    ),
    ".tar": lambda path, asked: tar_catalogue(
        [path], source=path, split=asked.split, **asked.naming
    ),
    ".zip": lambda path, asked: zip_catalogue(path, split=asked.split, **asked.naming),
}
"""What opens a file, by the end of its name."""


def _in(folder: Path, place: Path) -> Path:
    """Return a folder that was found in another, which may not be a link out of it."""
    if not is_inside(place, folder):
        raise DataError(f"{place}: a link that leads out of {folder}; copy the folder in")
    return place
