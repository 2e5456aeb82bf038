"""Triggers as other toolboxes keep them, turned into trigger files.

BackdoorBench keeps test images that carry the trigger already (`bd_test_dataset/`), which make a
`paired` trigger. BackdoorBox describes a patch or a blend by two tensors, `pattern` and `weight`:
`weight * pattern + (1 - weight) * image`, which is a `patch` of the image's full size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data.arrays import unit_range
from bdaudit.data.backdoorbench import POISONED_TREE, find_poisoned_tree
from bdaudit.data.images import EXTENSIONS
from bdaudit.errors import ConfigError, TriggerError, reads
from bdaudit.foundation.opening import TENSOR_BYTES, check_file, is_folder
from bdaudit.foundation.writing import write_atomically
from bdaudit.models.checkpoint import read_tree
from bdaudit.triggers.files import read_picture, read_tensor, read_trigger, write_trigger
from bdaudit.triggers.rules import AllToOne
from bdaudit.triggers.transforms import Patch
from bdaudit.triggers.trigger import Trigger

__all__ = ["import_trigger"]

_PAIRED = f"""version = 1
kind = "paired"
[target]
rule = "all-to-one"
label = {{}}
[paired]
folder = "{POISONED_TREE}"
layout = "backdoorbench"
"""


@reads(TriggerError)
def import_trigger(
    source: Path, *, target: int, weight: Path | None = None, out: Path | None = None
) -> Path:
    """Write a trigger file of what another toolbox keeps.

    Args:
        source: A BackdoorBench record folder, or a BackdoorBox pattern: `.pt`, `.npy`,
            `.safetensors` or a picture, (C, H, W) or (H, W), bytes or numbers in [0, 1].
        target: Index of the class that triggered images are taken to.
        weight: How much of the pattern counts at each pixel, in [0, 1], of the same size.
        out: The trigger file; by default `trigger.toml` in the record folder or beside the pattern.

    Returns:
        The file, which reads back.

    Raises:
        TriggerError: The source is neither, cannot be read, or the tensors do not fit each other.
    """
    if target < 0:
        raise TriggerError(f"target: expected the index of a class, got {target}")
    if not is_folder(source):
        return _import_pattern(source, target, weight, out or source.parent / "trigger.toml")
    tree = find_poisoned_tree(source)
    if tree is None or weight is not None:
        raise TriggerError(
            f"{source}: expected a BackdoorBench record folder with {POISONED_TREE}/ (and no "
            "weight), or a file with a pattern"
        )
    out = out or tree.parent / "trigger.toml"
    if out.resolve().parent != tree.resolve().parent:
        raise TriggerError(
            f"{out}: expected a file beside {tree}, since a trigger file names what lies in its "
            "own folder"
        )
    _write(out, _PAIRED.format(target))
    read_trigger(out)
    return out


def _import_pattern(source: Path, target: int, weight: Path | None, out: Path) -> Path:
    if weight is None:
        raise TriggerError(
            f"{source}: expected its weight too, the tensor that says how much of the pattern "
            "counts at each pixel (--weight FILE)"
        )
    image = unit_range(_as_image(_read(source, "pattern"), source), str(source))
    mask = _as_image(_read(weight, "weight"), weight)
    if not mask.is_floating_point():
        mask = mask.float() if int(mask.max()) <= 1 else mask.float() / 255
    if image.shape[1:] != mask.shape[1:]:
        raise TriggerError(
            f"{weight}: expected a weight of {tuple(image.shape[1:])} pixels like the pattern, got "
            f"{tuple(mask.shape[1:])}"
        )
    try:
        patch = Patch(image=image.float(), mask=mask.float(), corner="top-left", offset=(0, 0))
    except ConfigError as error:
        raise TriggerError(f"{source} and {weight}: {error}") from error
    write_trigger(out, Trigger(transform=patch, rule=AllToOne(target)))
    read_trigger(out)
    return out


def _read(path: Path, key: str) -> Tensor:
    if path.suffix.lower() in EXTENSIONS:
        return read_picture(path, "image")
    if path.suffix.lower() not in (".pt", ".pth"):
        return read_tensor(path, key)
    check_file(path, limit=TENSOR_BYTES, what="a tensor", error=TriggerError)
    tree = read_tree(path)
    if not isinstance(tree, Tensor):
        raise TriggerError(
            f"{path}: expected one tensor, got a {type(tree).__name__}; save the pattern, or the "
            "weight, alone"
        )
    return torch.Tensor.detach(tree).as_subclass(Tensor)


def _as_image(values: Tensor, path: Path) -> Tensor:
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 3 and values.shape[0] not in (1, 3) and values.shape[2] in (1, 3):
        values = values.permute(2, 0, 1)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or values.is_complex():
        raise TriggerError(
            f"{path}: expected (C, H, W) or (H, W) with one or three channels, got "
            f"{tuple(values.shape)}"
        )
    return values


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise TriggerError(f"{path}: cannot be written: {error.strerror or error}") from error
