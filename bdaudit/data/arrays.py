"""Samples from arrays: in memory, `.npz` and `.safetensors`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bdaudit.data.catalogue import Catalogue, read_catalogue
from bdaudit.data.images import ImageShape, fit_images
from bdaudit.data.sample import Sample
from bdaudit.errors import DataError

__all__ = [
    "array_file_catalogue",
    "arrays_catalogue",
    "from_arrays",
    "unit_range",
]

IMAGE_KEYS = ("images", "x", "data")
LABEL_KEYS = ("labels", "y", "targets")
_CHANNELS = (1, 3)
# Rounding in a float pipeline may leave [0, 1] by this much; it is clamped away.
_RANGE_SLACK = 1e-3
_MAX_UNPACKED_BYTES = 16 << 30


def from_arrays(
    images: Tensor | NDArray[np.generic],
    labels: Tensor | NDArray[np.generic] | Sequence[int],
    *,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    image_shape: ImageShape | None = None,
    source: str = "memory",
) -> Sample:
    """Make a sample of images that are in memory already.

    Args:
        images: (N, C, H, W), (N, H, W, C) or (N, H, W); uint8 in [0, 255] or floats in [0, 1].
        labels: (N,) integers of 0 and above, at least two different ones.
        names: One name an image; the index by default.
        class_names: In order of index.
        image_shape: (C, H, W) to bring the images to. It also settles the layout where the array's
            own shape leaves it open.
        source: What the record says about where the images came from.

    Returns:
        A sample on the CPU.

    Raises:
        DataError: Shapes, types or values are not as above.
    """
    catalogue = arrays_catalogue(
        _as_tensor(images, source),
        _as_tensor(labels, source),
        source=source,
        class_names=class_names,
        names=names,
    )
    return read_catalogue(catalogue, torch.arange(len(catalogue.names)), image_shape)


def array_file_catalogue(path: Path, *, split: str) -> Catalogue:
    """Open a `.npz` or `.safetensors` file of images and labels.

    Args:
        path: The file. Images under one of `IMAGE_KEYS`, labels under one of `LABEL_KEYS`, each
            bare or followed by `_` and the split (`x_test`, as Keras writes them).
        split: "train" or "test".

    Raises:
        DataError: The file cannot be read without running code, or a key is missing.
    """
    arrays = _read_npz(path) if path.suffix.lower() == ".npz" else _read_safetensors(path)
    images = _named(arrays, IMAGE_KEYS, split, path)
    labels = _named(arrays, LABEL_KEYS, split, path)
    return arrays_catalogue(images, labels, source=str(path))


def arrays_catalogue(
    images: Tensor,
    labels: Tensor,
    *,
    source: str,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Catalogue:
    """Describe `images` (N, ...) and `labels` (N,) as a catalogue; nothing is copied yet."""
    labels = _integer_labels(labels, source)
    if images.ndim not in (3, 4) or images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{source}: expected images (N, C, H, W), (N, H, W, C) or (N, H, W) and labels (N,), "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if names is not None and len(names) != labels.shape[0]:
        raise DataError(f"{source}: {len(names)} names for {labels.shape[0]} images")

    def read(indices: Tensor, image_shape: ImageShape | None) -> Tensor:
        chosen = _channels_first(images[indices], image_shape, source)
        scaled = unit_range(chosen, source)
        return scaled if image_shape is None else fit_images(scaled, image_shape)

    return Catalogue(
        labels=labels,
        names=tuple(names) if names is not None else tuple(map(str, range(labels.shape[0]))),
        class_names=None if class_names is None else tuple(class_names),
        source=source,
        read=read,
    )


def _as_tensor(values: Tensor | NDArray[np.generic] | Sequence[int], source: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype == np.uint16:  # torch can hold it but not compute with it
        array = array.astype(np.int64)
    try:
        # Copied where numpy says read-only, negative strides or foreign byte order.
        native = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
        return torch.from_numpy(native)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: expected numbers, got an array of {array.dtype}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_UNPACKED_BYTES:
            raise DataError(
                f"{path}: unpacks to {unpacked:,} bytes, more than the {_MAX_UNPACKED_BYTES:,} "
                "that are read; store fewer images"
            )
        with np.load(path, allow_pickle=False) as archive:
            return {
                key: _as_tensor(archive[key], str(path))
                for key in archive.files
                if archive[key].dtype.kind in "biuf"
            }
    except DataError:
        raise
    # zipfile, zlib and numpy raise half a dozen types on damaged archives.
    except Exception as error:
        raise DataError(
            f"{path}: expected arrays as numpy.savez writes them, without pickled objects, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path}: expected a safetensors file, got: {error}") from error


def _named(arrays: Mapping[str, Tensor], keys: Sequence[str], split: str, path: Path) -> Tensor:
    wanted = [name for key in keys for name in (f"{key}_{split}", key)]
    for name in wanted:
        if name in arrays:
            return arrays[name]
    raise DataError(
        f"{path}: expected an array called {' or '.join(keys)}, found "
        f"{', '.join(sorted(arrays)) or 'none'}"
    )


def _integer_labels(labels: Tensor, source: str) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{source}: expected integer labels (N,), got {labels.dtype} {tuple(labels.shape)}; "
            "of one-hot labels take the argmax"
        )
    return labels.long()


def _channels_first(images: Tensor, image_shape: ImageShape | None, source: str) -> Tensor:
    """Bring (N, C, H, W), (N, H, W, C) or (N, H, W) to (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first and last:
        if image_shape is not None and tuple(images.shape[1:]) == tuple(image_shape):
            return images
        channels_moved = (images.shape[3], images.shape[1], images.shape[2])
        if image_shape is not None and channels_moved == tuple(image_shape):
            return images.permute(0, 3, 1, 2)
        raise DataError(
            f"{source}: images of shape {tuple(images.shape)} may be (N, C, H, W) or (N, H, W, C); "
            "store them channels first and give the image shape"
        )
    if first:
        return images
    if last:
        return images.permute(0, 3, 1, 2)
    raise DataError(
        f"{source}: images of shape {tuple(images.shape)} have neither 1 nor 3 channels in second "
        "or last place; expected (N, C, H, W) or (N, H, W, C)"
    )


def unit_range(images: Tensor, source: str) -> Tensor:
    """Bring uint8 or float images to float32 in [0, 1]."""
    if images.dtype == torch.uint8:
        if images.max() == 1:
            raise DataError(
                f"{source}: uint8 images whose largest value is 1; expected 0 to 255, or floats in "
                "[0, 1]"
            )
        return images.float().contiguous() / 255
    if not images.is_floating_point():
        raise DataError(f"{source}: expected uint8 or float images, got {images.dtype}")
    images = images.float().contiguous()
    if not torch.isfinite(images).all():
        raise DataError(f"{source}: images hold NaN or infinite values")
    low, high = float(images.min()), float(images.max())
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        remedy = (
            "divide by 255"
            if low >= 0 and 2 < high <= 255
            else "undo the normalisation (times std, plus mean); the model does it itself"
        )
        raise DataError(
            f"{source}: expected float images in [0, 1], got values from {low:.4g} to {high:.4g}; "
            f"{remedy}"
        )
    return images.clamp(0, 1)
