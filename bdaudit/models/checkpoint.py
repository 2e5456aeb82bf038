"""Open a checkpoint file of any usual format and find the named tensors in it.

Nothing in a file is ever executed. A file is opened once, and the bytes that are checked and
digested are the bytes that the tensors are made of. What was done to its content (a prefix
stripped, a mask multiplied in) stands in `Checkpoint.notes`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import ModelError, reads
from bdaudit.foundation.opening import MODEL_BYTES, open_file, read_bytes
from bdaudit.models import backdoorbench
from bdaudit.models.archive import ZIP_MAGIC, check_torch_archive
from bdaudit.models.foreign import describe_foreign
from bdaudit.models.pickled_modules import ModuleFacts
from bdaudit.models.pickles import read_pickle
from bdaudit.models.quantised import dequantise
from bdaudit.models.shards import INDEX_BYTES, INDEX_SUFFIX, linked_within, read_index
from bdaudit.models.strict_json import load_strictly
from bdaudit.models.weight_sets import TOP, WeightSet, choose_set, find_sets, quote_names
from bdaudit.models.wrappers import strip_wrappers

__all__ = [
    "Checkpoint",
    "ReadFile",
    "demand_finite",
    "non_finite_tensors",
    "open_checkpoint",
    "read_checkpoint",
    "read_content",
    "read_metadata",
    "read_tree",
    "tree_of",
]

_WHAT = "a checkpoint"
_HEAD_BYTES = 1024
_LONGEST_NAME = 1024
_MOST_TENSORS = 1_000_000
# Tied tensors are counted once a name, so a file may hold fewer bytes than its tensors sum to;
# much fewer means that the file claims what it does not hold.
_EXPANSION_LIMIT = 4
_EXPANSION_SLACK_BYTES = 1 << 20
_FLOATS = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn}
    | {torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
)
_WHOLE = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFile:
    """A file as it was when its bytes were read."""

    path: Path
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, content: bytes) -> ReadFile:
        """Describe a file by its bytes."""
        return cls(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Named tensors as a file holds them, on the CPU.

    Attributes:
        path: The file.
        tensors: Tensors by name, in the file's own types.
        metadata: What the file says about its model, as text: the metadata of a safetensors file,
            or `model_name`, `num_classes`, `img_size` and `clean_data` of BackdoorBench's results.
        container: The format found, in words ("safetensors", "torch nested under 'model'").
        notes: What was done to the content, in words.
        key: Which of the file's sets of weights these are; `.` at the top.
        was_named: Whether that key was asked for.
        others: Keys of the file's other sets of weights, which differ.
        files: What was read: the file, and its shards where it is an index.
        modules: What the file says of the modules the tensors stand in, by name, where it holds a
            whole pickled module.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    container: str
    notes: tuple[str, ...] = ()
    key: str = TOP
    was_named: bool = False
    others: tuple[str, ...] = ()
    files: tuple[ReadFile, ...] = ()
    modules: Mapping[str, ModuleFacts] = field(default_factory=dict)


@reads(ModelError)
def open_checkpoint(
    path: Path | str,
    *,
    weights: str | None = None,
    preferred_weights: str | None = None,
    read_pickled_module: bool = False,
) -> Checkpoint:
    """Open a checkpoint and refuse one that cannot be audited.

    Reads `.safetensors`, an index of shards beside them, and what `torch.save` writes (zip and
    legacy form, a bare state_dict or one nested anywhere, BackdoorBench's results), told apart by
    content, not by name. `module.` and `_orig_mod.` are stripped from names; `weight_orig` and
    `weight_mask` of pruning are multiplied, and so are the `neuron_mask` of a batch norm and its
    scale; tensors that torch quantised become floats.

    Args:
        path: The file.
        weights: Which of a file's sets of weights is meant, by the keys that lead to it joined by
            `/`; must be there.
        preferred_weights: Likewise, taken where it is there, and then before `weights`.
        read_pickled_module: Whether the tensors of a whole pickled module are taken, every class
            in it as an inert record: nothing of the file runs.

    Raises:
        ModelError: The file is missing, empty, damaged, of another format, would have to run code
            to be read, can be read in two ways, claims more data than it holds, has NaN or
            infinite weights, or holds several different sets of weights and none was named.
    """
    checkpoint = read_checkpoint(
        Path(path),
        weights=weights,
        preferred_weights=preferred_weights,
        read_pickled_module=read_pickled_module,
    )
    demand_finite(str(path), checkpoint.tensors)
    return checkpoint


@reads(ModelError)
def read_checkpoint(
    path: Path,
    *,
    weights: str | None = None,
    preferred_weights: str | None = None,
    read_pickled_module: bool = False,
    content: bytes | None = None,
) -> Checkpoint:
    """Do what `open_checkpoint` does, but let NaN and infinite weights through.

    Args:
        path: The file.
        weights: As of `open_checkpoint`.
        preferred_weights: As of `open_checkpoint`.
        read_pickled_module: As of `open_checkpoint`.
        content: Its bytes, where they were read already by `read_content`.

    Raises:
        ModelError: As `open_checkpoint`, save for the non-finite weights.
    """
    if content is None:
        content = read_content(path)
    read = [ReadFile.of(path, content)]
    passed_over: list[str] = []
    metadata: dict[str, str] = {}
    if _is_index(path):
        tensors, shards = _read_shards(path, content)
        read += shards
        container = f"{len(shards)} shards"
        sets = [WeightSet(key=TOP, tensors=tensors)]
    elif _is_safetensors(path, content):
        tensors, metadata = _read_safetensors(path, content)
        container = "safetensors"
        sets = [WeightSet(key=TOP, tensors=tensors)]
    else:
        tree = _read_torch(path, content, as_records=read_pickled_module)
        metadata, container = _describe_tree(tree)
        sets, passed_over = find_sets(path, tree)
        if not sets:
            raise ModelError(_without_tensors(path, tree))
    size = sum(file.size_bytes for file in read)
    del content  # the tensors have their own copy by now
    chosen = choose_set(
        path, sets, wanted=weights, preferred=preferred_weights, passed_over=passed_over
    )
    if container == "torch state_dict" and chosen.key != TOP:
        keys = chosen.key.split("/")
        container = "torch nested under " + ", ".join(repr(key[:80]) for key in keys)
    if chosen.modules:
        container = container.replace("torch state_dict", "torch") + ", a pickled module"
    notes = list(chosen.notes)
    tensors = dequantise(path, chosen.tensors, notes)
    _check_tensors(path, tensors, size)
    tensors = strip_wrappers(tensors, notes)
    tensors = _merge_masks(path, tensors, notes)
    tensors = _merge_neuron_masks(path, tensors, notes)
    return Checkpoint(
        path=path,
        tensors=tensors,
        metadata=metadata,
        container=container,
        notes=tuple(notes),
        key=chosen.key,
        was_named=chosen.was_named,
        others=chosen.others,
        files=tuple(read),
        modules=chosen.modules,
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a BackdoorBench result says about its model, whatever weights it holds.

    Raises:
        ModelError: The file cannot be read.
    """
    content = read_content(path)
    if _is_index(path) or _is_safetensors(path, content):
        return {}
    return _describe_tree(_read_torch(path, content))[0]


def read_content(path: Path) -> bytes:
    """Read a file that begins like a checkpoint.

    Raises:
        ModelError: It is missing, no regular file, too large, or something else, which is named.
    """
    if path.suffix.lower() == ".onnx":
        raise ModelError(
            f"{path}: expected weights to build a torch network from, got an ONNX file; ONNX files "
            "are for the query mode, which only asks the model. Give the torch checkpoint here"
        )
    if path.suffix.lower() == ".xml":
        raise ModelError(
            f"{path}: expected weights to build a torch network from, got an OpenVINO IR, which is "
            "for the query mode, which only asks the model. Give the torch checkpoint here"
        )
    if _is_index(path):
        return read_bytes(path, limit=INDEX_BYTES, what="an index of shards", error=ModelError)
    with open_file(path, limit=MODEL_BYTES, what=_WHAT, error=ModelError) as stream:
        head = stream.read(_HEAD_BYTES)
        if not head:
            raise ModelError(f"{path}: expected a checkpoint, got an empty file; copy it again")
        # The length that a safetensors file begins with can look like any signature.
        foreign = None if head[8:9] == b"{" else describe_foreign(head)
        if foreign is not None:
            raise ModelError(f"{path}: expected a checkpoint, {foreign}")
        size = stream.seek(0, 2)
        if _is_safetensors(path, head):
            _header_length(path, head, size)  # before gigabytes are read
        stream.seek(0)
        return stream.read()


def _is_index(path: Path) -> bool:
    return path.name.lower().endswith(INDEX_SUFFIX)


def _is_safetensors(path: Path, content: bytes) -> bool:
    return path.suffix.lower() == ".safetensors" or content[8:9] == b"{"


def read_tree(path: Path) -> Any:
    """Return what torch saved in a file, whatever it is; nothing in it runs.

    Raises:
        ModelError: It is no such file, or would have to run code to be read.
    """
    return tree_of(path, read_content(path))


def tree_of(path: Path, content: bytes) -> Any:
    """Return what torch saved in a file whose bytes were read by `read_content`.

    Raises:
        ModelError: As `read_tree`.
    """
    return _read_torch(path, content)


def _read_torch(path: Path, content: bytes, *, as_records: bool = False) -> Any:
    if content.startswith(b"PK"):
        if not content.startswith(ZIP_MAGIC):
            raise ModelError(
                f"{path}: expected a torch checkpoint, got a truncated or damaged zip archive; "
                "copy or download it again"
            )
        check_torch_archive(path, content)
    return read_pickle(path, content, as_records=as_records)


def _describe_tree(tree: Any) -> tuple[dict[str, str], str]:
    """Return metadata and the container's name."""
    result = backdoorbench.read_result(dict(dict.items(tree)) if isinstance(tree, dict) else {})
    return ({}, "torch state_dict") if result is None else result


def _without_tensors(path: Path, tree: Any) -> str:
    if not isinstance(tree, dict):
        return (
            f"{path}: expected named tensors (a state_dict), got {_describe(tree)}; save "
            "model.state_dict() with torch.save"
        )
    keys = [k if isinstance(k, str) else f"<{type(k).__name__}>" for k in dict.keys(tree)]
    return (
        f"{path}: expected named tensors (a state_dict), at the top or under some key; got keys "
        f"{quote_names(keys) or '(none)'}"
    )


def _header_length(path: Path, content: bytes, size: int) -> int:
    """Return the length of a safetensors file's header.

    Raises:
        ModelError: The header is not all there.
    """
    length: int = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 2 <= length <= size - 8:
        raise ModelError(
            f"{path}: expected a safetensors file, got a truncated, damaged or different one "
            f"(its header would have {length} bytes); copy or download it again"
        )
    return length


def _read_safetensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors.torch import load

    length = _header_length(path, content, len(content))
    try:
        header = load_strictly(content[8 : 8 + length])
        # The library refuses ranges that overlap, leave gaps or do not end with the file.
        tensors = load(content)
        metadata = header.get("__metadata__") or {}
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(
            f"{path}: expected a safetensors file, got a damaged or different one ({reason}); "
            "copy or download it again"
        ) from error


def _read_shards(path: Path, content: bytes) -> tuple[dict[str, Tensor], list[ReadFile]]:
    """Read the shards that an index names, each of which must hold what the index says."""
    tensors: dict[str, Tensor] = {}
    read = []
    for name, expected in read_index(path, content).items():
        shard = path.with_name(name)
        inside = read_bytes(
            shard,
            limit=MODEL_BYTES,
            what="a shard",
            error=ModelError,
            within=linked_within(path.parent),
        )
        read.append(ReadFile.of(shard, inside))
        if _is_safetensors(shard, inside):
            found, _ = _read_safetensors(shard, inside)
        else:
            sets, _ = find_sets(shard, _read_torch(shard, inside))
            found = sets[0].tensors if len(sets) == 1 and sets[0].key == TOP else {}
        if found.keys() != expected:
            odd = sorted(found.keys() ^ expected)
            raise ModelError(
                f"{shard}: expected the {len(expected)} tensors that {path.name} says it holds, "
                f"got {len(found)}; they differ in {quote_names(odd)}. Download all files again"
            )
        tensors.update(found)
    return tensors, read


def demand_finite(subject: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ModelError that names the tensors with NaN or infinity, if there are any."""
    broken = non_finite_tensors(tensors)
    if broken:
        raise ModelError(
            f"{subject}: expected finite weights, got NaN or infinity in {quote_names(broken)}; "
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


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that no network here can run with, and files that claim too much."""
    if not tensors:
        raise ModelError(f"{path}: expected weights, got a file with no tensors in it")
    if len(tensors) > _MOST_TENSORS:
        raise ModelError(f"{path}: expected at most {_MOST_TENSORS} tensors, got {len(tensors)}")
    for name, tensor in tensors.items():
        if len(name) > _LONGEST_NAME:
            raise ModelError(
                f"{path}: expected names of at most {_LONGEST_NAME} characters, got one of "
                f"{len(name)} that begins {name[:40]!r}"
            )
        if (
            tensor.is_nested
            or tensor.layout is not torch.strided
            or tensor.dtype not in _FLOATS | _WHOLE
            or tensor.device.type != "cpu"
        ):
            raise ModelError(
                f"{path}: expected dense real tensors, got {name[:80]!r} as {tensor.dtype} with "
                f"layout {tensor.layout}; save the unquantised, dense model"
            )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > _EXPANSION_LIMIT * size + _EXPANSION_SLACK_BYTES:
        raise ModelError(
            f"{path}: expected tensors that fit in the file of {size} bytes, got tensors of "
            f"{claimed} bytes; save contiguous copies (tensor.clone())"
        )


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
        notes.append(f"multiplied pruning masks into {len(pruned)} tensors ({quote_names(pruned)})")
    return merged


def _merge_neuron_masks(
    path: Path, tensors: dict[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Multiply the scale of a batch norm by its `neuron_mask`, as ANP and RNP prune neurons.

    Their batch norms scale by weight x mask and shift by the bias as it is. ANP's noise
    (`neuron_noise`, `neuron_noise_bias`) is added while it looks for the mask, and in no
    evaluation. Source: Wu and Wang, "Adversarial Neuron Pruning" (NeurIPS 2021).
    """
    ending = ".neuron_mask"
    masked = [
        name.removesuffix(ending)
        for name in tensors
        if name.endswith(ending) and f"{name.removesuffix(ending)}.running_mean" in tensors
    ]
    merged = dict(tensors)
    for name in masked:
        weight, mask = merged.get(f"{name}.weight"), merged.pop(f"{name}{ending}")
        if weight is None or weight.shape != mask.shape or not mask.is_floating_point():
            raise ModelError(
                f"{path}: expected {name[:80] + ending!r} to be shaped like the scale of its batch "
                f"norm, got {tuple(mask.shape)} of {mask.dtype}"
            )
        merged[f"{name}.weight"] = weight * mask.to(weight.dtype)
        for noise in ("neuron_noise", "neuron_noise_bias"):
            merged.pop(f"{name}.{noise}", None)
    if masked:
        notes.append(
            f"multiplied neuron masks into the scales of {len(masked)} batch norms "
            f"({quote_names(masked)}); noise beside them, which no evaluation adds, left out"
        )
    return merged


def _describe(content: Any) -> str:
    if isinstance(content, Tensor):
        return f"a single tensor of shape {tuple(content.shape)}"
    return f"a {type(content).__name__}"
