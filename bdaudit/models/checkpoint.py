"""Open a checkpoint file of any usual format and find the named tensors in it.

Nothing in a file is ever executed. What was done to its content (a prefix stripped, a mask
multiplied in) stands in `Checkpoint.notes`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import ModelError, reads
from bdaudit.models import backdoorbench
from bdaudit.models.pickles import read_pickle

__all__ = [
    "Checkpoint",
    "demand_finite",
    "non_finite_tensors",
    "open_checkpoint",
    "read_checkpoint",
]

# Where training scripts put the weights, in the order they are looked for.
_NESTING_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "state",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
)
_NESTING_DEPTH = 3
# Tied tensors are counted once a name, so a file may hold fewer bytes than its tensors sum to;
# much fewer means that the file claims what it does not hold.
_EXPANSION_LIMIT = 4
_EXPANSION_SLACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Named tensors as a file holds them, on the CPU.

    Attributes:
        path: The file.
        tensors: Tensors by name, in the file's own types; they may be views of the mapped file.
        metadata: What the file says about its model, as text: the metadata of a safetensors file,
            or `model_name`, `num_classes`, `img_size` and `clean_data` of BackdoorBench's results.
        container: The format found, in words ("safetensors", "torch nested under 'model'").
        notes: What was done to the content, in words.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    container: str
    notes: tuple[str, ...] = ()


@reads(ModelError)
def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint and refuse one that cannot be audited.

    Reads `.safetensors` and what `torch.save` writes (zip and legacy form, a bare state_dict or
    one nested under a usual key, BackdoorBench's results), told apart by content, not by name.
    `module.` and `_orig_mod.` are stripped from names; `weight_orig` and `weight_mask` of pruning
    are multiplied.

    Raises:
        ModelError: The file is missing, empty, damaged, of another format, would have to run code
            to be read, claims more data than it holds, or has NaN or infinite weights.
    """
    checkpoint = read_checkpoint(Path(path))
    demand_finite(str(path), checkpoint.tensors)
    return checkpoint


@reads(ModelError)
def read_checkpoint(path: Path) -> Checkpoint:
    """Do what `open_checkpoint` does, but let NaN and infinite weights through.

    Raises:
        ModelError: As `open_checkpoint`, save for the non-finite weights.
    """
    head = _first_bytes(path)
    if path.suffix.lower() == ".onnx":
        raise ModelError(
            f"{path}: expected weights to build a torch network from, got an ONNX file; ONNX files "
            "are for the query mode, which only asks the model. Give the torch checkpoint here"
        )
    if path.suffix.lower() == ".safetensors" or head[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
        container = "safetensors"
        notes: list[str] = []
    else:
        if head.startswith(b"PK"):
            _check_archive(path)
        tensors, metadata, container, notes = _find_state_dict(path, read_pickle(path))
    _check_tensors(path, tensors)
    tensors = _strip_wrappers(tensors, notes)
    tensors = _merge_masks(path, tensors, notes)
    return Checkpoint(
        path=path, tensors=tensors, metadata=metadata, container=container, notes=tuple(notes)
    )


def demand_finite(subject: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ModelError that names the tensors with NaN or infinity, if there are any."""
    broken = non_finite_tensors(tensors)
    if broken:
        raise ModelError(
            f"{subject}: expected finite weights, got NaN or infinity in {_names(broken)}; "
            "the training that made them diverged, or the file is damaged"
        )


def non_finite_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity, in order."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not _is_finite(tensor)
    ]


def _is_finite(tensor: Tensor) -> bool:
    numbers = tensor.float()  # the 8-bit types have neither sums nor isfinite
    # A finite sum has finite terms, and summing is many times faster than looking at each term;
    # finite terms whose sum overflows are the rare case left.
    return bool(torch.isfinite(numbers.sum())) or bool(torch.isfinite(numbers).all())


def _first_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError(
                f"{path}: expected a checkpoint file, got a folder; name the file in it"
            )
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: expected a checkpoint file, got a device or pipe")
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null byte in the name
        raise ModelError(f"{path!r}: not a file name: {error}") from error
    if not head:
        raise ModelError(f"{path}: expected a checkpoint, got an empty file; copy it again")
    return head


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as archive:
            metadata = dict(archive.metadata() or {})
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except Exception as error:
        raise ModelError(
            f"{path}: expected a safetensors file, got a damaged or different one ({error}); "
            "copy or download it again"
        ) from error
    return tensors, metadata


def _check_archive(path: Path) -> None:
    """Refuse zip files that are not plain torch checkpoints, before torch opens them."""
    try:
        entries = zipfile.ZipFile(path).infolist()
    except Exception as error:
        raise ModelError(
            f"{path}: expected a torch checkpoint, got a truncated or damaged zip archive "
            f"({error}); copy or download it again"
        ) from error
    # Entries stand under one folder named for the file: "weights/data.pkl".
    inner = {entry.filename.partition("/")[2] or entry.filename for entry in entries}
    if any(name.startswith("code/") or name == "constants.pkl" for name in inner):
        raise ModelError(
            f"{path}: expected a state_dict, got a TorchScript archive, which carries code; it was "
            "not run. Re-save its weights: torch.save(torch.jit.load(...).state_dict(), 'w.pt')"
        )
    if "archive_format" in inner or any("exported_program" in name for name in inner):
        raise ModelError(
            f"{path}: expected a state_dict, got a torch.export archive (.pt2); loading one can "
            "run code, so it was not loaded. Where you trust it, re-save its weights: "
            "torch.save(torch.export.load(...).state_dict, 'weights.pt')"
        )
    if "data.pkl" not in inner:
        raise ModelError(
            f"{path}: expected a torch checkpoint, got a zip archive without 'data.pkl'; "
            "unpack it and name the checkpoint inside"
        )
    # torch stores entries as they are: more bytes than the file has are a zip bomb.
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > size:
        raise ModelError(
            f"{path}: expected entries that fit in the file of {size} bytes, got entries that "
            f"unpack to {claimed}; torch never compresses a checkpoint. Re-save it with torch.save"
        )


def _find_state_dict(
    path: Path, content: Any
) -> tuple[dict[str, Tensor], dict[str, str], str, list[str]]:
    """Return tensors, metadata, container and notes from what a pickle held."""
    result = backdoorbench.read_result(content)
    keys: list[str] = []
    if result is not None:
        content, metadata, container = result
    else:
        metadata, container = {}, "torch state_dict"
    while len(keys) < _NESTING_DEPTH:
        key = _nesting_key(content)
        if key is None:
            break
        keys.append(key)
        others = [other for other in _NESTING_KEYS if other != key and _has_tensors(content, other)]
        content = content[key]
    notes = []
    if keys:
        container = "torch nested under " + ", ".join(repr(key) for key in keys)
        if others:
            notes.append(f"took {keys[-1]!r}; the file also holds weights under {_names(others)}")
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path}: expected named tensors (a state_dict), got {_describe(content)}; save "
            "model.state_dict() with torch.save"
        )
    tensors = {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise ModelError(
            f"{path}: expected named tensors (a state_dict) at the top or under one of "
            f"{', '.join(_NESTING_KEYS)}; got keys {_names([str(key) for key in content])}"
        )
    left_out = [str(name) for name in content if name not in tensors]
    if left_out:
        notes.append(f"left out entries that are not tensors: {_names(left_out)}")
    return tensors, metadata, container, notes


def _nesting_key(content: Any) -> str | None:
    return next((key for key in _NESTING_KEYS if _has_tensors(content, key)), None)


def _has_tensors(content: Any, key: str, depth: int = _NESTING_DEPTH) -> bool:
    """Whether `content[key]` is a mapping with tensors in it, or again nested."""
    if depth == 0 or not isinstance(content, Mapping) or not isinstance(content.get(key), Mapping):
        return False
    inner = content[key]
    return any(isinstance(value, Tensor) for value in inner.values()) or any(
        _has_tensors(inner, nested, depth - 1) for nested in _NESTING_KEYS
    )


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that no network here can run with, and files that claim too much."""
    if not tensors:
        raise ModelError(f"{path}: expected weights, got a file with no tensors in it")
    for name, tensor in tensors.items():
        if (
            tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_complex()
            or tensor.is_meta
        ):
            raise ModelError(
                f"{path}: expected dense real tensors, got {name!r} as {tensor.dtype} with layout "
                f"{tensor.layout}; save the unquantised, dense model"
            )
    size = path.stat().st_size
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _EXPANSION_LIMIT * size + _EXPANSION_SLACK_BYTES:
        raise ModelError(
            f"{path}: expected tensors that fit in the file of {size} bytes, got tensors of "
            f"{claimed} bytes; save contiguous copies (tensor.clone())"
        )


def _strip_wrappers(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Undo the renaming of DataParallel (`module.`) and torch.compile (`_orig_mod.`)."""
    if any("_orig_mod." in name for name in tensors):
        tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
        notes.append("stripped '_orig_mod.'")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        notes.append("stripped 'module.'")
    return tensors


def _merge_masks(path: Path, tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Multiply `X_orig` by `X_mask`, as torch.nn.utils.prune stores a pruned `X`."""
    pruned = [
        name.removesuffix("_orig")
        for name in tensors
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in tensors
    ]
    merged = dict(tensors)
    for name in pruned:
        original, mask = merged.pop(f"{name}_orig"), merged.pop(f"{name}_mask")
        if original.shape != mask.shape:
            raise ModelError(
                f"{path}: expected a pruning mask shaped like its weight, got {name + '_orig'!r} "
                f"{tuple(original.shape)} and {name + '_mask'!r} {tuple(mask.shape)}"
            )
        merged[name] = original * mask.to(original.dtype)
    if pruned:
        notes.append(f"multiplied pruning masks into {len(pruned)} tensors ({_names(pruned)})")
    return merged


def _describe(content: Any) -> str:
    if isinstance(content, Tensor):
        return f"a single tensor of shape {tuple(content.shape)}"
    return f"a {type(content).__name__}"


def _names(names: list[str], limit: int = 5) -> str:
    """Quote names from a file, which may hold anything, for a message."""
    shown = ", ".join(repr(name[:80]) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
