"""CIFAR-10 and CIFAR-100 in the "python" form that torchvision keeps on disk.

The batches are pickles, and a pickle can run any code it likes when it is loaded. These are read
by an unpickler that knows five names, each of which it answers with a harmless stand-in: numpy
arrays arrive as their parts (shape, type, bytes) and are rebuilt only after the parts were checked.
Nothing of numpy, and nothing else, is ever called with what the file says.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdaudit.data.arrays import arrays_catalogue
from bdaudit.data.catalogue import Catalogue
from bdaudit.errors import DataError
from bdaudit.foundation.opening import read_bytes

__all__ = ["cifar_catalogue", "find_cifar_folder"]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    files: Mapping[str, tuple[str, ...]]
    label_key: str
    names_file: str
    names_key: str


_LAYOUTS = {
    "cifar-10-batches-py": _Layout(
        files={"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
        label_key="labels",
        names_file="batches.meta",
        names_key="label_names",
    ),
    "cifar-100-python": _Layout(
        files={"train": ("train",), "test": ("test",)},
        label_key="fine_labels",
        names_file="meta",
        names_key="fine_label_names",
    ),
}
_SIDE = 32
_MAX_FILE_BYTES = 512 << 20
_MOST_MEMOS = 1 << 20
_SHOWN = 120  # characters of what a pickle says that are repeated
_OPERATIONS = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})  # fmt: skip


def find_cifar_folder(folder: Path) -> Path | None:
    """Find a CIFAR folder: `folder` itself or one in it."""
    found = [
        place
        for name in _LAYOUTS
        for place in (folder, folder / name)
        if place.name == name and place.is_dir()
    ]
    if len(found) > 1:
        raise DataError(f"{folder}: holds CIFAR-10 and CIFAR-100; give one of the folders in it")
    return found[0] if found else None


def cifar_catalogue(folder: Path, *, split: str) -> Catalogue:
    """Describe the `split` ("train" or "test") of a folder that `find_cifar_folder` found.

    Images are named by their index in the split, as BackdoorBench counts them. CIFAR-100 has its
    hundred fine labels.

    Raises:
        DataError: A batch is missing, damaged, or a pickle that wants anything but its arrays.
    """
    layout = _LAYOUTS[folder.name]
    images: list[Tensor] = []
    labels: list[int] = []
    for name in layout.files[split]:
        batch = _read_batch(folder / name)
        images.append(_image_block(batch.get("data"), folder / name))
        of_batch = _label_list(batch.get(layout.label_key), folder / name)
        if len(of_batch) != len(images[-1]):
            raise DataError(f"{folder / name}: {len(of_batch)} labels for {len(images[-1])} images")
        labels += of_batch
    meta = folder / layout.names_file
    class_names = _read_batch(meta).get(layout.names_key) if meta.is_file() else None
    if class_names is not None and not _all_are(class_names, str):
        raise DataError(f"{meta}: expected a list of class names under {layout.names_key!r}")
    return arrays_catalogue(
        torch.cat(images),
        torch.tensor(labels),
        source=f"{folder} ({split})",
        class_names=class_names,
        classes_from=layout.names_file,
    )


def _read_batch(path: Path) -> dict[str, Any]:
    raw = read_bytes(
        path, limit=_MAX_FILE_BYTES, what="a CIFAR batch", error=DataError, within=path.parent
    )
    try:
        content = load_plain_pickle(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # A hostile or damaged pickle can make the unpickler raise nearly anything, and what it says
    # may repeat the file.
    except Exception as error:
        raise DataError(
            f"{path}: expected a CIFAR batch, got {type(error).__name__}: {str(error)[:_SHOWN]}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a CIFAR batch (a dict), got {type(content).__name__}")
    return content


def _image_block(data: object, path: Path) -> Tensor:
    columns = 3 * _SIDE * _SIDE
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != columns:
        raise DataError(f"{path}: expected 'data' of (N, {columns}) bytes")
    return torch.from_numpy(data).reshape(-1, 3, _SIDE, _SIDE)


def _label_list(labels: object, path: Path) -> list[int]:
    if not _all_are(labels, int):
        raise DataError(f"{path}: expected a list of integer labels")
    return list(labels)  # type: ignore[call-overload, no-any-return]


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _demand_plain_operations(content: bytes) -> None:
    """Refuse a pickle that a CIFAR batch is not made of, before it is run.

    Some operations set aside as much memory as they say, whatever the file holds.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name not in _OPERATIONS:
            raise DataError(f"the pickle holds {operation.name}, which no CIFAR batch does")
        memo = int(argument or 0) if operation.name in {"PUT", "LONG_BINPUT"} else 0
        if not 0 <= memo < _MOST_MEMOS:
            raise DataError(f"the pickle remembers more than {_MOST_MEMOS:,} things")


def load_plain_pickle(content: bytes) -> Any:
    """Unpickle containers, numbers, text and uint8 arrays; anything else is refused.

    Raises:
        DataError: The pickle asks for a name outside the five that arrays need.
    """
    _demand_plain_operations(content)
    # The classes are made anew for every file: a pickle may set attributes on what it was given,
    # and must not be able to leave any behind for the next one.

    class ArrayParts:
        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.state = state

    class TypeParts:
        def __init__(self, name: str, *_: object) -> None:
            self.name = name

        def __setstate__(self, state: object) -> None:
            pass  # byte order and alignment, which a single byte has not

    def make_parts(*_: object) -> ArrayParts:
        return ArrayParts()

    def encode(text: str, _encoding: str = "latin1") -> bytes:
        return text.encode("latin1")  # how pickle protocol 2 spells bytes

    def rebuild(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rebuild(item) for key, item in value.items()}
        if isinstance(value, ArrayParts):
            _, shape, kind, fortran, values = value.state
            if not isinstance(kind, TypeParts) or kind.name not in {"u1", "uint8"}:
                raise DataError("expected arrays of uint8 in it")
            # bytes() of a number would set aside as many.
            if not isinstance(values, bytes | str):
                raise DataError("expected an array's values as bytes")
            raw = values.encode("latin1") if isinstance(values, str) else values
            array = np.frombuffer(raw, dtype=np.uint8)
            return array.reshape(shape, order="F" if fortran else "C").copy()
        return value

    known = {
        ("numpy", "ndarray"): ArrayParts,
        ("numpy", "dtype"): TypeParts,
        ("numpy.core.multiarray", "_reconstruct"): make_parts,
        ("numpy._core.multiarray", "_reconstruct"): make_parts,
        ("_codecs", "encode"): encode,
    }

    class PlainUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise DataError(
                    f"the pickle asks for {f'{module}.{name}'[:_SHOWN]}, which no "
                    "CIFAR batch does; it may be hostile and was not loaded"
                )
            return known[module, name]

    return rebuild(PlainUnpickler(io.BytesIO(content), encoding="latin1").load())
