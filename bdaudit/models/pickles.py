"""Read the tensors out of a pickle without running anything that the pickle asks for.

`torch.load(weights_only=True)` has an interpreter of its own that knows tensors and refuses every
other name. Checkpoints of the field also hold numpy arrays and a few settings objects beside the
weights. Those names are mapped here to *inert stand-ins*, which keep what the file says and do
nothing, so that neither numpy's nor any other library's unpickling code ever sees hostile bytes.

On request *every* class and function that a pickle names becomes an inert record (`InertRecord`):
never imported, never called. That reads whole pickled modules (`pickled_modules`).
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from bdaudit.errors import ModelError
from bdaudit.models.archive import ZIP_MAGIC, pickle_entry

__all__ = ["InertArray", "InertObject", "InertRecord", "read_pickle", "wanted_globals"]

_PLAIN_DTYPE = re.compile(r"[biufSU]\d{1,4}")
# Names that torch's own interpreter accepts, and so appear in harmless files.
_TENSOR_GLOBAL = re.compile(
    r"torch\.(Size|Tensor|device|bool|\w+Storage|b?float\w+|u?int\d+)"
    r"|torch\.storage\.(Typed|Untyped)Storage|torch\.serialization\._get_layout"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.Parameter|collections\.(OrderedDict|Counter)"
    r"|_codecs\.encode|(builtins|__builtin__)\.(set|complex)"
)
_LEGACY_PICKLES = 5  # magic number, protocol, system information, object, storage keys
# Every pickle wants few of them, and torch's interpreter goes through all for each object.
_MOST_RECORDS = 2000
# What runs programs or code, or reaches out of the process: no network needs it, and whoever loads
# the file elsewhere runs it.
_DANGEROUS = re.compile(
    r"(os|posix|nt|sys|posixpath|ntpath|nturl2path|subprocess|shutil|socket|ssl|runpy|importlib|imp"
    r"|pip|ensurepip|venv|pty|ctypes|code|codeop|pickle|_pickle|cloudpickle|dill|marshal|webbrowser"
    r"|multiprocessing|asyncio|threading|_thread|http|urllib|requests|pdb|bdb|timeit|cProfile"
    r"|profile|trace|signal|tempfile|commands|popen2|io|gc|inspect)(\..+)?"
    r"|types\.(Code|Function|Method|Lambda|Module)Type|operator\.(methodcaller|attrgetter)"
    r"|(builtins|__builtin__)\.(?!(set|frozenset|complex|slice|range|object|dict|list|tuple|int"
    r"|float|bool|str|bytes|type)$).+"
    r"|.+\.__\w+"
)
# A pickle can have one made of any size, and no checkpoint needs it.
_UNBOUNDED = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n")


class InertObject:
    """Stands for an object the checkpoint holds beside its weights; does nothing.

    Attributes:
        arguments: What its constructor would have been given.
        state: What its `__setstate__` would have been given.
    """

    # Of the class, since a pickle can make an object without its constructor.
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class InertRecord(InertObject):
    """Stands for an object of a class that is not imported, one subclass a name in the file.

    Attributes:
        class_name: The class, or the function whose result it would have been.
        was_called: Whether it is what a call would have given, and not an object whose attributes
            the file holds.
        state: A copy of its attributes, taken when the file set them, as unpickling would.
    """

    class_name: str = ""
    was_called: bool = False

    def __new__(cls, *arguments: Any) -> InertRecord:  # noqa: D102 - as a pickle makes objects
        record = super().__new__(cls)
        record.arguments = arguments
        return record

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.was_called = True

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise ValueError("the state of one object set twice")
        # What the file does to the mapping afterwards would not reach the real object either.
        self.state = dict(dict.items(state)) if isinstance(state, dict) else state


class _InertDtype(InertObject):
    """Stands for a `numpy.dtype`."""

    def resolve(self) -> np.dtype[Any] | None:
        """Return the type when it is a plain number or text type, else `None`."""
        code = self.arguments[0] if self.arguments else None
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            return None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        return np.dtype((order if order in ("<", ">") else "=") + code)


class InertArray(InertObject):
    """Stands for a `numpy.ndarray`: its description and raw bytes."""

    def to_numpy(self) -> np.ndarray[Any, Any] | None:
        """Make the array when it holds plain numbers or text, else return `None`."""
        match self.state:
            case (int(), tuple(shape), _InertDtype() as dtype, fortran, bytes(data)):
                plain = dtype.resolve()
                if plain is None:
                    return None
                order = "F" if fortran else "C"
                return np.frombuffer(data, plain).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]
        return None


def _inert_array(*_: Any) -> InertArray:
    return InertArray()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """Stand for `numpy.core.multiarray.scalar`, giving a plain Python number or text."""
    plain = dtype.resolve() if isinstance(dtype, _InertDtype) else None
    if plain is None or not isinstance(data, bytes):
        return InertObject(dtype, data)
    return np.frombuffer(data, plain, count=1)[0].item()


# name in the file -> inert stand-in
_STAND_INS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": InertArray,
    "numpy.dtype": _InertDtype,
    **{
        f"{package}.multiarray.{name}": function
        for package in ("numpy.core", "numpy._core")
        for name, function in (("_reconstruct", _inert_array), ("scalar", _scalar))
    },
    # Training scripts keep their options and paths beside the weights.
    "argparse.Namespace": InertObject,
    "pathlib.PosixPath": InertObject,
    "pathlib.WindowsPath": InertObject,
    "pathlib._local.PosixPath": InertObject,
    "pathlib._local.WindowsPath": InertObject,
}


def read_pickle(path: Path, content: bytes, *, as_records: bool = False) -> Any:
    """Read what `torch.save` wrote, tensors on the CPU.

    Args:
        path: For messages.
        content: The whole file. Of a zip archive `check_torch_archive` has approved.
        as_records: Whether classes beyond the allow-list become inert records, so that whole
            modules can be read; else they are refused. Nothing of them runs either way.

    Returns:
        The object tree, made of plain containers, tensors, numbers, text and inert stand-ins. Its
        containers and tensors may carry attributes that hide their methods.

    Raises:
        ModelError: The file is damaged, or its pickle wants a name outside the allow-list; the
            message names what it wanted. Nothing in the file was run.
    """
    if _UNBOUNDED.search(_pickles_in(content)):
        raise ModelError(_refusal(path, ("builtins.bytearray",)))
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    if as_records:
        allowed += _records(path, wanted_globals(content))
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            # A foreign pickle protocol is worth a warning to torch and none to the user.
            warnings.simplefilter("ignore")
            tree = torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
    # Junk makes the unpickler raise KeyError, IndexError, EOFError, struct.error and more. Its
    # messages are not quoted: some advise to switch off what keeps a pickle from running.
    except Exception as error:
        wanted = wanted_globals(content)
        if wanted and as_records:
            raise ModelError(
                f"{path}: expected a module that torch.save pickled, got one that cannot be read "
                "without running it: of another pickle protocol than 2, saved by torch before "
                "1.6, or with objects that only a call fills. Have its author save "
                "model.state_dict()"
            ) from error
        if wanted:
            raise ModelError(_refusal(path, wanted)) from error
        raise ModelError(
            f"{path}: expected a checkpoint that torch.save wrote, got a damaged or different "
            f"file ({type(error).__name__}); copy or download it again, or save it as .safetensors"
        ) from error
    if not content.startswith(ZIP_MAGIC) and stream.tell() != len(content):
        raise ModelError(
            f"{path}: expected one checkpoint, got one with {len(content) - stream.tell()} bytes "
            "after its end, which may be another; load it if you trust it and re-save the one "
            "that is meant"
        )
    return tree


def wanted_globals(content: bytes) -> tuple[str, ...]:
    """Name what a pickle would import beyond the allow-list, without running it.

    Args:
        content: The whole file.

    Returns:
        Sorted "module.name" entries; empty for a harmless file and for one that holds no pickle.
    """
    names: set[str] = set()
    # A damaged stream ends the scan: what was seen until then still counts.
    try:
        stream = io.BytesIO(_pickles_in(content))
        for _ in range(_LEGACY_PICKLES):
            for name in _globals_in(stream):
                names.add(name)
    except Exception:  # noqa: S110 - the reader of the file reports the damage
        pass
    return tuple(
        sorted(n for n in names if n not in _STAND_INS and not _TENSOR_GLOBAL.fullmatch(n))
    )


def _records(path: Path, wanted: tuple[str, ...]) -> list[tuple[Any, str]]:
    """Make an inert class for every name.

    Raises:
        ModelError: There are too many, or one is of no use but to run something.
    """
    names = {_modern(name) for name in wanted}
    dangerous = tuple(sorted(n for n in names.union(wanted) if _DANGEROUS.fullmatch(n)))
    if dangerous:
        raise ModelError(
            f"{path}: refused: its pickle wants {_quoted(dangerous)}, which no network needs and "
            "which would run when the file is loaded elsewhere; nothing was run. Ask its author "
            "for a state_dict or a .safetensors file"
        )
    if len(names) > _MOST_RECORDS:
        raise ModelError(
            f"{path}: expected a pickled module, got a pickle that names {len(names)} classes"
        )
    return [
        (type("InertRecord", (InertRecord,), {"class_name": name}), name) for name in sorted(names)
    ]


def _modern(name: str) -> str:
    """Return the name that Python 3 has for what Python 2 called `name`, as unpicklers do."""
    module, _, attribute = name.rpartition(".")
    renamed = _compat_pickle.NAME_MAPPING.get((module, attribute))
    if renamed is not None:
        return ".".join(renamed)
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{attribute}"


def _globals_in(stream: IO[bytes]) -> Iterator[str]:
    """Yield "module.name" for each global of the next pickle in `stream`.

    `STACK_GLOBAL` takes its two names from the stack; they are followed through the memo, which
    covers what pickle writes. A file that hides them otherwise is refused all the same, since
    the interpreter of `torch.load` knows no `STACK_GLOBAL`.
    """
    texts: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:]) if len(texts) > 1 else "a computed name"
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else ""
        elif "UNICODE" in opcode.name:
            texts.append(str(argument))
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument in memo:
            texts.append(memo[argument])


def _pickles_in(content: bytes) -> bytes:
    if content.startswith(ZIP_MAGIC):
        return pickle_entry(content)
    # The length field of a safetensors file can look like opcodes.
    return b"" if content[8:9] == b"{" else content


def _refusal(path: Path, wanted: tuple[str, ...]) -> str:
    shown = _quoted(wanted)
    if any(
        name.startswith(("torch.nn.modules.", "torchvision.models.", "timm.")) for name in wanted
    ):
        return (
            f"{path}: expected a state_dict, got a whole pickled module; unpickling one runs its "
            f"code ({shown}), so it was not loaded. Have whoever made it save "
            "model.state_dict() with torch.save, or as .safetensors; or pass --read-pickled-module "
            "to take its tensors without running it"
        )
    return (
        f"{path}: refused: its pickle wants {shown}, which rebuilding tensors never needs; "
        "nothing was run. Ask its author for a state_dict or a .safetensors file"
    )


def _quoted(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name[:200]) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
