"""Samples from arrays: in memory, `.npz` and `.safetensors`."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from bdaudit.data.catalogue import Catalogue, read_catalogue
from bdaudit.data.classes import shown
from bdaudit.data.images import ImageShape, fit_images, fitting_notes
from bdaudit.data.sample import Sample
from bdaudit.errors import DataError
from bdaudit.foundation.opening import SAMPLE_BYTES, check_file, in_bytes, open_file

__all__ = [
    "array_file_catalogue",
    "arrays_catalogue",
    "from_arrays",
    "read_npy",
    "unit_range",
]

IMAGE_KEYS = ("images", "x", "data")
LABEL_KEYS = ("labels", "y", "targets")
_CHANNELS = (1, 3)
# Rounding in a float pipeline may leave [0, 1] by this much; it is clamped away.
_RANGE_SLACK = 1e-3
# Images of [0, 1] divided by 255 once more.
_TWICE_DIVIDED = 1.001 / 255
_MOST_HEADER_BYTES = 10_000
_IMAGE_TYPES = frozenset({torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64})
_LABEL_TYPES = frozenset(
    {
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.int8, torch.int16, torch.int32, torch.int64,
    }
)  # fmt: skip


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
    check_file(path, limit=SAMPLE_BYTES, what="arrays of images and labels", error=DataError)
    with _open_npz(path) if path.suffix.lower() == ".npz" else _open_safetensors(path) as arrays:
        images_key = _choose(arrays.names, IMAGE_KEYS, split, path)
        labels_key = _choose(arrays.names, LABEL_KEYS, split, path)
        images, labels = arrays.read(images_key), arrays.read(labels_key)
    parts = {f"{key}_{part}" for key in (*IMAGE_KEYS, *LABEL_KEYS) for part in ("train", "test")}
    others = sorted(set(arrays.names) - {images_key, labels_key} - parts)
    notes = (f"skipped arrays that are neither images nor labels: {shown(others)}",)
    return arrays_catalogue(images, labels, source=str(path), notes=notes if others else ())


def arrays_catalogue(
    images: Tensor,
    labels: Tensor,
    *,
    source: str,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    classes_from: str = "the class names given",
) -> Catalogue:
    """Describe `images` (N, ...) and `labels` (N,) as a catalogue; nothing is copied yet."""
    labels = _integer_labels(labels, source)
    if images.ndim not in (3, 4) or images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{source}: expected images (N, C, H, W), (N, H, W, C) or (N, H, W) and labels (N,), "
            f"got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if images.dtype not in _IMAGE_TYPES:
        raise DataError(f"{source}: expected uint8 or float images, got {images.dtype}")
    if 0 in images.shape[1:]:
        raise DataError(f"{source}: images of shape {tuple(images.shape)} have no pixels")
    if names is not None and len(names) != labels.shape[0]:
        raise DataError(f"{source}: {len(names)} names for {labels.shape[0]} images")

    def read(indices: Tensor, image_shape: ImageShape | None) -> tuple[Tensor, tuple[str, ...]]:
        chosen, read_as = _channels_first(images[indices], image_shape, source)
        scaled = unit_range(chosen, source)
        if 0 < (highest := float(scaled.max())) <= _TWICE_DIVIDED:
            raise DataError(
                f"{source}: images whose largest value is {highest:.4g}; expected [0, 1]: were "
                "they divided by 255 twice?"
            )
        if image_shape is None:
            return scaled, read_as
        shape = tuple(scaled.shape[1:])
        fitted = fitting_notes({shape: len(scaled)}, image_shape)
        return fit_images(scaled, image_shape), (*read_as, *fitted)

    return Catalogue(
        labels=labels,
        names=tuple(names) if names is not None else tuple(map(str, range(labels.shape[0]))),
        class_names=None if class_names is None else tuple(class_names),
        source=source,
        read=read,
        notes=tuple(notes),
        classes_from=classes_from,
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


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The arrays of an open file: their names, and a way to read one."""

    names: tuple[str, ...]
    read: Callable[[str], Tensor]


@contextmanager
def _open_npz(path: Path) -> Iterator[_Arrays]:
    try:
        with (
            open_file(path, limit=SAMPLE_BYTES, what="arrays", error=DataError) as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            entries = {
                name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()
            }
            if len(entries) != len(archive.infolist()):
                raise DataError(f"{path}: two arrays in it have the same name")

            def read(name: str) -> Tensor:
                entry = entries[name]
                if entry.file_size > SAMPLE_BYTES:
                    raise DataError(
                        f"{path}: {name} unpacks to {in_bytes(entry.file_size)}, more than the "
                        f"{in_bytes(SAMPLE_BYTES)} that are read; store fewer images"
                    )
                with archive.open(entry) as member:
                    return _as_tensor(read_npy(member, entry.file_size), str(path))

            yield _Arrays(tuple(entries), read)
    except DataError:
        raise
    # zipfile, zlib and numpy raise half a dozen types on damaged archives.
    except Exception as error:
        raise DataError(
            f"{path}: expected arrays as numpy.savez writes them, without pickled objects, got "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def _open_safetensors(path: Path) -> Iterator[_Arrays]:
    try:
        with safe_open(path, framework="pt") as archive:
            yield _Arrays(tuple(archive.keys()), archive.get_tensor)
    except DataError:
        raise
    # Types that torch does not know come as KeyError, AttributeError and others.
    except Exception as error:
        raise DataError(
            f"{path}: expected a safetensors file of images and labels, got "
            f"{type(error).__name__}: {error}"
        ) from error


def read_npy(stream: IO[bytes], size: int) -> NDArray[np.generic]:
    """Read one `.npy` array from a stream of `size` bytes, without pickled objects.

    What its header promises is held against the bytes that are there before any are set aside.

    Raises:
        ValueError: It is no such array, or is not as large as its header says.
        Exception: Whatever else numpy raises on a damaged header.
    """
    version = np.lib.format.read_magic(stream)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if header is None:
        raise ValueError(f"expected format version 1 or 2, got {version}")
    shape, fortran, kind = header(stream, _MOST_HEADER_BYTES)
    if kind.hasobject or kind.kind not in "biuf":
        raise ValueError(f"expected numbers, got an array of {str(kind)[:80]}")
    values = math.prod(shape)
    if min(shape, default=1) < 0 or values * kind.itemsize > size:
        raise ValueError(f"its header promises {shape} of {kind}, more than the file holds")
    content = stream.read(values * kind.itemsize)
    if len(content) != values * kind.itemsize or stream.read(1):
        raise ValueError(f"its header promises {shape} of {kind}, not what the file holds")
    array = np.frombuffer(content, dtype=kind)
    return array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)


def _choose(names: Collection[str], keys: Sequence[str], split: str, path: Path) -> str:
    """Choose the one array that is called like one of `keys`.

    Raises:
        DataError: There is none, or there are several that could be meant.
    """
    wanted = [name for key in keys for name in (f"{key}_{split}", key) if name in names]
    if not wanted:
        raise DataError(
            f"{path}: expected an array called {' or '.join(keys)}, found "
            f"{shown(sorted(names)) or 'none'}"
        )
    if len(wanted) > 1:
        raise DataError(
            f"{path}: {' and '.join(wanted)} could each be meant; keep one of them in the file"
        )
    return wanted[0]


def _integer_labels(labels: Tensor, source: str) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype not in _LABEL_TYPES:
        raise DataError(
            f"{source}: expected integer labels (N,), got {labels.dtype} {tuple(labels.shape)}; "
            "of one-hot labels take the argmax"
        )
    return labels.long()


def _channels_first(
    images: Tensor, image_shape: ImageShape | None, source: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Bring (N, C, H, W), (N, H, W, C) or (N, H, W) to (N, C, H, W), and note what was done."""
    if images.ndim == 3:
        return images[:, None], ()
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    turned = images.permute(0, 3, 1, 2), ("images were read as (N, H, W, C)",)
    if first and last:
        if image_shape is not None and tuple(images.shape[1:]) == tuple(image_shape):
            return images, ()
        channels_moved = (images.shape[3], images.shape[1], images.shape[2])
        if image_shape is not None and channels_moved == tuple(image_shape):
            return turned
        raise DataError(
            f"{source}: images of shape {tuple(images.shape)} may be (N, C, H, W) or (N, H, W, C); "
            "store them channels first and give the image shape"
        )
    if first:
        return images, ()
    if last:
        return turned
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
    if images.dtype not in _IMAGE_TYPES:
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
