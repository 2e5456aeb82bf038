"""MNIST's idx files (MNIST, Fashion-MNIST, KMNIST, ...), plain or gzipped.

Format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit integer, then the values. Only unsigned bytes (code 8) are read; the data sets have no other.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bdaudit.data.arrays import arrays_catalogue
from bdaudit.data.catalogue import Catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import SAMPLE_BYTES, open_file

__all__ = ["find_idx_folder", "idx_catalogue", "read_idx"]

_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8
_MAX_VALUES = 1 << 32
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def find_idx_folder(folder: Path) -> Path | None:
    """Find the idx files in `folder` or in torchvision's `raw` folders below it."""
    candidates = [folder, folder / "raw", *sorted(folder.glob("*MNIST/raw"))]
    found = [place for place in candidates if any(place.glob("*-images-idx3-ubyte*"))]
    if len(found) > 1:
        raise DataError(
            f"{folder}: several data sets of MNIST's form: {', '.join(map(str, found))}; "
            "give one of them"
        )
    return found[0] if found else None


def idx_catalogue(folder: Path, *, split: str) -> Catalogue:
    """Describe the `split` ("train" or "test") of a folder of idx files.

    Raises:
        DataError: A file is missing, truncated or not idx.
    """
    images = _read(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
    labels = _read(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    # The files do not say which of the data sets they are; only the folder's name does.
    is_fashion = "fashion" in str(folder).lower()
    return arrays_catalogue(
        images,
        labels.long(),
        source=f"{folder} ({split})",
        class_names=FASHION_CLASSES if is_fashion else None,
        classes_from="Fashion-MNIST's names, for 'fashion' in the folder's name",
    )


def read_idx(path: Path, *, within: Path | None = None) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped when its name ends in `.gz`.

    Args:
        path: The file.
        within: The folder that it must lie in.

    Raises:
        DataError: The file is missing, truncated, or not an idx file of unsigned bytes.
    """
    with open_file(
        path, limit=SAMPLE_BYTES, what="an idx file", error=DataError, within=within
    ) as file:
        try:
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            magic = stream.read(4)
            if len(magic) < 4 or magic[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
                raise DataError(f"{path}: expected an idx file of unsigned bytes, got another file")
            shape = tuple(np.frombuffer(stream.read(4 * magic[3]), dtype=">u4").tolist())
            size = math.prod(shape)
            if len(shape) != magic[3] or size > _MAX_VALUES:
                raise DataError(f"{path}: damaged idx header, shape {shape}")
            values = stream.read(size + 1)  # one more, to see that there is no more
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(f"{path}: {error}") from error
    if len(values) != size:
        raise DataError(f"{path}: expected {size} values for shape {shape}, got {len(values)}")
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8).reshape(shape).copy())


def _read(folder: Path, name: str) -> Tensor:
    """Read a file that may be plain or gzipped; where it is both they must say the same."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise DataError(f"{folder}: expected {name} or {name}.gz there")
    first, *others = (read_idx(path, within=folder) for path in found)
    if any(not torch.equal(first, other) for other in others):
        raise DataError(f"{folder}: {name} and {name}.gz hold different values; remove one of them")
    return first
