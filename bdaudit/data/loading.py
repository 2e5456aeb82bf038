"""From a path to a sample, whatever is found there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from bdaudit.data.arrays import array_file_catalogue
from bdaudit.data.backdoorbench import backdoorbench_catalogue, find_poisoned_tree
from bdaudit.data.catalogue import Catalogue, read_catalogue
from bdaudit.data.cifar import cifar_catalogue, find_cifar_folder
from bdaudit.data.folder import class_folder_catalogue, read_class_names
from bdaudit.data.gtsrb import find_gtsrb_folder, gtsrb_catalogue
from bdaudit.data.idx import find_idx_folder, idx_catalogue
from bdaudit.data.images import ImageShape
from bdaudit.data.sample import Sample
from bdaudit.data.split import stratified_indices
from bdaudit.data.tiny_imagenet import find_tiny_imagenet_folder, tiny_imagenet_catalogue
from bdaudit.errors import ConfigError, DataError

__all__ = ["load_poisoned_tree", "load_sample"]


def load_sample(
    path: str | Path,
    *,
    image_shape: ImageShape | None = None,
    classes: str | Path | Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    split: Literal["train", "test"] = "test",
) -> Sample:
    """Read a clean labelled sample.

    Args:
        path: A folder of class folders of images; a `.npz` or `.safetensors` file of images and
            labels; or a folder that holds CIFAR-10, CIFAR-100, GTSRB or a data set of MNIST's form
            as torchvision keeps them, or Tiny ImageNet as its archive unpacks (nothing is
            downloaded). docs/data.md has each layout.
        image_shape: (C, H, W) the model takes. Images are brought to it: grey to RGB or back,
            resized bilinearly with antialiasing. `None` asks that all agree already.
        classes: Class names in order of index, or a file of them, one a line.
        limit: Most images to read, chosen by `seed` so that every class keeps its share; `None`
            reads all. Images that are not chosen are never decoded.
        seed: For `limit`.
        split: Which part of a data set that comes in two.

    Returns:
        The sample, on the CPU.

    Raises:
        DataError: Nothing is there, it is none of the above, has images of one class only, or
            images that do not open, disagree in size, or lie outside the folder.
        ConfigError: `limit` is below 2.
    """
    path = Path(path)
    if limit is not None and limit < 2:
        raise ConfigError(f"limit: expected at least 2 images (two classes), got {limit}")
    class_names = read_class_names(Path(classes)) if isinstance(classes, str | Path) else classes
    catalogue = _open(path, class_names, split)
    if class_names is not None:
        catalogue = replace(catalogue, class_names=tuple(class_names))
    return _read(catalogue, image_shape, limit, seed)


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
    return _read(backdoorbench_catalogue(tree), image_shape, limit, seed)


def _read(
    catalogue: Catalogue, image_shape: ImageShape | None, limit: int | None, seed: int
) -> Sample:
    total = len(catalogue.names)
    indices = torch.arange(total)
    if limit is not None and limit < total:
        generator = torch.Generator().manual_seed(seed)
        # Sorted: a subset keeps the order of the whole.
        indices = stratified_indices(catalogue.labels, limit, generator).sort().values
    return read_catalogue(catalogue, indices, image_shape)


def _open(path: Path, class_names: Sequence[str] | None, split: str) -> Catalogue:
    if path.is_dir():
        return _open_folder(path, class_names, split)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.suffix.lower() in {".npz", ".safetensors"}:
        return array_file_catalogue(path, split=split)
    raise DataError(
        f"{path}: expected a folder of class folders, a .npz or a .safetensors file, got "
        f"'{path.suffix or path.name}'; pickled arrays (.pt, .pkl) are not read, save them with "
        "numpy.savez(images=..., labels=...)"
    )


def _open_folder(folder: Path, class_names: Sequence[str] | None, split: str) -> Catalogue:
    if folder.name in {"", ".."}:
        folder = folder.resolve()  # layouts are told by the folder's own name
    if (cifar := find_cifar_folder(folder)) is not None:
        return cifar_catalogue(cifar, split=split)
    if (idx := find_idx_folder(folder)) is not None:
        return idx_catalogue(idx, split=split)
    if (gtsrb := find_gtsrb_folder(folder)) is not None:
        return gtsrb_catalogue(gtsrb, split=split)
    if (tiny := find_tiny_imagenet_folder(folder)) is not None:
        return tiny_imagenet_catalogue(tiny, split=split, class_names=class_names)
    if find_poisoned_tree(folder) is not None:
        raise DataError(
            f"{folder}: holds BackdoorBench's poisoned images, not clean ones; give the clean test "
            "set as the data, and this folder as a trigger of kind 'paired'"
        )
    return class_folder_catalogue(folder, class_names=class_names)
