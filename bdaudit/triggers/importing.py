"""Triggers as other toolboxes keep them, turned into trigger files.

BackdoorBench keeps test images that carry the trigger already (`bd_test_dataset/`), which make a
`paired` trigger, and the attack's settings. BackdoorBox describes a patch or a blend by two
tensors, `pattern` and `weight`: `weight * pattern + (1 - weight) * image`, which is a `patch` of
the image's full size. TrojanZoo keeps a mark with its opacity. TrojAI's descriptions are refused.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data.arrays import unit_range
from bdaudit.data.backdoorbench import POISONED_TREE, find_poisoned_tree
from bdaudit.data.images import EXTENSIONS
from bdaudit.errors import ConfigError, TriggerError, reads
from bdaudit.foundation.opening import SETTINGS_BYTES, TENSOR_BYTES, check_file, is_file, is_folder
from bdaudit.foundation.texts import read_json
from bdaudit.foundation.writing import write_atomically
from bdaudit.models.checkpoint import read_tree
from bdaudit.triggers.attack_settings import (
    SETTINGS_IN_RECORD,
    SETTINGS_SUFFIXES,
    read_settings,
    rule_of,
    trigger_of,
)
from bdaudit.triggers.files import read_picture, read_tensor, read_trigger, write_trigger
from bdaudit.triggers.rules import AllToOne
from bdaudit.triggers.transforms import Patch
from bdaudit.triggers.trigger import Trigger
from bdaudit.triggers.trojanzoo import is_mark, mark_trigger

__all__ = ["import_trigger"]

_TRIGGER = "trigger.toml"
_TROJAI = "config.json"
_PAIRED = f"""version = 1
kind = "paired"
[target]
{{}}
[paired]
folder = "{POISONED_TREE}"
layout = "backdoorbench"
"""


@reads(TriggerError)
def import_trigger(
    source: Path,
    *,
    target: int | None = None,
    weight: Path | None = None,
    offset: tuple[int, int] | None = None,
    out: Path | None = None,
) -> Path:
    """Write a trigger file of what another toolbox keeps.

    Args:
        source: A BackdoorBench record folder, or the settings of one of its attacks (`.yaml`,
            `info.pickle`); a BackdoorBox pattern: `.pt`, `.npy`, `.safetensors` or a picture,
            (C, H, W) or (H, W), bytes or numbers in [0, 1]; a TrojanZoo mark, `.npy` under the name
            that TrojanZoo gives it.
        target: Index of the class that triggered images are taken to; `None` where the source says.
        weight: Of a BackdoorBox pattern: how much of it counts at each pixel, in [0, 1], of the
            same size.
        offset: Of a TrojanZoo mark: rows and columns from the top left.
        out: The trigger file; by default `trigger.toml` in the record folder or beside the source.

    Returns:
        The file, which reads back.

    Raises:
        TriggerError: The source is none of these, cannot be read, or does not say enough.
    """
    if target is not None and target < 0:
        raise TriggerError(f"target: expected the index of a class, got {target}")
    if is_folder(source):
        if weight is not None or offset is not None:
            raise TriggerError(f"{source}: a folder has neither a weight nor an offset")
        return _import_folder(source, target, out)
    out = out or source.parent / _TRIGGER
    suffix = source.suffix.lower()
    if suffix == ".json":
        _refuse_trojai(source)
    if suffix in SETTINGS_SUFFIXES:
        trigger = trigger_of(read_settings(source), source, target)
    elif is_mark(source):
        trigger = mark_trigger(source, target=target, offset=offset)
    else:
        trigger = _pattern(source, target, weight)
    write_trigger(out, trigger)
    read_trigger(out)
    return out


def _import_folder(source: Path, target: int | None, out: Path | None) -> Path:
    tree = find_poisoned_tree(source)
    if tree is None:
        if is_file(source / _TROJAI):
            _refuse_trojai(source / _TROJAI)
        raise TriggerError(
            f"{source}: expected a BackdoorBench record folder with {POISONED_TREE}/, or a file "
            "with settings, a pattern or a mark"
        )
    out = out or tree.parent / _TRIGGER
    if out.resolve().parent != tree.resolve().parent:
        raise TriggerError(
            f"{out}: expected a file beside {tree}, since a trigger file names what lies in its "
            "own folder"
        )
    settings = tree.parent / SETTINGS_IN_RECORD
    if is_file(settings):
        rule = rule_of(read_settings(settings), target, settings)
    elif target is not None:
        rule = AllToOne(target)
    else:
        raise TriggerError(
            f"{source}: expected the target class, which the images do not tell: {settings.name} "
            "of the attack beside them, or --target N"
        )
    lines = [f'rule = "{rule.name}"', *(f"{k} = {v}" for k, v in rule.settings().items())]
    _write(out, _PAIRED.format("\n".join(lines)))
    read_trigger(out)
    return out


def _refuse_trojai(path: Path) -> None:
    """Refuse a description of TrojAI's triggers by its name, and any other JSON.

    Raises:
        TriggerError: Always.
    """
    content = read_json(path, what="a trigger's description", limit=SETTINGS_BYTES)
    keys = [str(key).casefold() for key in content] if isinstance(content, dict) else []
    if any("trigger" in key for key in keys):
        raise TriggerError(
            f"{path}: TrojAI's description of a trigger cannot be converted: size and place of a "
            "polygon are drawn anew for every image within the ranges it gives, and a filter is "
            "code of TrojAI's. Stamp clean images with its own generator and give the two folders "
            "as a 'paired' trigger, or a function as a 'python' one"
        )
    raise TriggerError(f"{path}: expected a trigger of another toolbox, got some other JSON")


def _pattern(source: Path, target: int | None, weight: Path | None) -> Trigger:
    if target is None:
        raise TriggerError(
            f"{source}: expected the target class, which it does not say: --target N"
        )
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
    return Trigger(transform=patch, rule=AllToOne(target))


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
