"""BackdoorBench's settings of an attack, as a trigger.

They are a YAML file (`config/attack/<attack>/<name>.yaml`), or `info.pickle` in a record folder,
where `torch.save` put them. The patch, the blend, the sinusoid, the low-frequency pattern and the
quantisation of BPP are all in the settings, and are read; what other attacks draw or train while
they run is not. Source: BackdoorBench's `utils/aggregate_block/bd_attack_generate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.foundation.opening import SETTINGS_BYTES, is_file, path_inside
from bdaudit.foundation.texts import read_text
from bdaudit.models.checkpoint import read_tree
from bdaudit.triggers.files import read_picture, read_tensor
from bdaudit.triggers.quantise import Quantise
from bdaudit.triggers.rules import AllToAll, AllToOne, TargetRule
from bdaudit.triggers.transforms import Additive, Blend, Patch, Sinusoid, Transform
from bdaudit.triggers.trigger import Trigger

__all__ = ["SETTINGS_IN_RECORD", "SETTINGS_SUFFIXES", "read_settings", "rule_of", "trigger_of"]

SETTINGS_SUFFIXES = (".yaml", ".yml", ".pickle")
SETTINGS_IN_RECORD = "info.pickle"

_SIDES = {"mnist": 28, "cifar10": 32, "cifar100": 32, "gtsrb": 32, "celeba": 64, "tiny": 64}
"""What BackdoorBench resizes a data set's images to, and with them the picture of a patch."""


def read_settings(path: Path) -> Mapping[str, Any]:
    """Read the settings of an attack; nothing in the file runs.

    Raises:
        TriggerError: It is no mapping of settings, or cannot be read.
    """
    content = read_tree(path) if path.suffix.lower() == ".pickle" else _read_yaml(path)
    if not isinstance(content, dict):
        raise TriggerError(
            f"{path}: expected BackdoorBench's settings, names and values, got a "
            f"{type(content).__name__}"
        )
    return {str(key): value for key, value in dict.items(content)}


def _read_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise TriggerError(f"{path}: needs pyyaml; pip install 'bdaudit[yaml]'") from error
    text = read_text(path, what="settings of an attack", error=TriggerError, limit=SETTINGS_BYTES)
    try:
        # Names for parts of the file could make it grow without end.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise TriggerError(f"{path}: expected settings without aliases (*name)")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        gist = " ".join(str(error).split())[:200]
        raise TriggerError(f"{path}: expected BackdoorBench's settings in YAML: {gist}") from error


def rule_of(settings: Mapping[str, Any], target: int | None, where: Path) -> TargetRule:
    """Return which class images are taken to, by `attack_label_trans` and `attack_target`.

    Raises:
        TriggerError: The settings do not say, or say something else than `target`.
    """
    kind = settings.get("attack_label_trans", "all2one")
    if kind == "all2all":
        shift = settings.get("attack_label_shift_amount", 1)
        if target is not None or shift != 1:
            raise TriggerError(
                f"{where}: takes class y to y + {shift}, which "
                + ("has no one target; leave --target out" if shift == 1 else "is not read here")
            )
        return AllToAll()
    said = settings.get("attack_target")
    said = said if isinstance(said, int) and not isinstance(said, bool) else None
    if kind != "all2one" or (target is None and said is None):
        raise TriggerError(
            f"{where}: expected attack_label_trans 'all2one' with attack_target, or 'all2all', got "
            f"{kind!r:.40} with {settings.get('attack_target')!r:.40}; give --target N"
        )
    if None not in (target, said) and target != said:
        raise TriggerError(f"{where}: attack_target is {said}, got --target {target}")
    label = target if said is None else said
    assert label is not None
    return AllToOne(label)


def trigger_of(settings: Mapping[str, Any], where: Path, target: int | None) -> Trigger:
    """Return the trigger that settings describe.

    Args:
        settings: By name.
        where: Their file. What they name is looked for in its folder and, of
            `config/attack/<attack>/` and `record/<name>/`, from the folder above these, as
            BackdoorBench names it.
        target: Index of the target class, where it is given beside the settings.

    Raises:
        TriggerError: The attack is none that settings alone describe, or they are not whole.
    """
    attack = settings.get("attack")
    make = _ATTACKS.get(attack) if isinstance(attack, str) else None
    if make is None:
        raise TriggerError(
            f"{where}: expected an attack whose settings say what is stamped "
            f"({', '.join(_ATTACKS)}), got {attack!r:.40}; what others draw or train while they "
            "run is not in their settings: import the record folder, whose bd_test_dataset/ holds "
            "images that are stamped already"
        )
    rule = rule_of(settings, target, where)
    try:
        return Trigger(transform=make(settings, where), rule=rule)
    except ConfigError as error:
        raise TriggerError(f"{where}: {error}") from error


def _patch(settings: Mapping[str, Any], where: Path) -> Transform:
    """Pixels of the picture that are not 0 replace the image's, channel by channel."""
    picture = _picture(settings, "patch_mask_path", where)
    sides = _sides_of(settings)
    if sides is not None and tuple(picture.shape[1:]) != sides:
        picture = functional.interpolate(
            picture[None], size=sides, mode="bilinear", antialias=True, align_corners=False
        )[0]
        picture = (picture * 255).round().clamp(0, 255) / 255  # pictures are bytes there
    mask = (picture > 0).float()
    return Patch(image=picture, mask=mask, corner="top-left", offset=(0, 0))


def _blend(settings: Mapping[str, Any], where: Path) -> Transform:
    picture = _picture(settings, "attack_trigger_img_path", where)
    return Blend(image=picture, alpha=_number(settings, "attack_test_blended_alpha", where))


def _sinusoid(settings: Mapping[str, Any], where: Path) -> Transform:
    amplitude = _number(settings, "sig_delta", where) / 255
    return Sinusoid(amplitude=amplitude, frequency=_number(settings, "sig_f", where))


def _low_frequency(settings: Mapping[str, Any], where: Path) -> Transform:
    """The first pattern of an array (H, W), (H, W, C) or (N, H, W, C), out of 255."""
    place = _resource(settings, "lowFrequencyPatternPath", where)
    pattern = read_tensor(place, "pattern").float()
    if pattern.ndim == 4:
        pattern = pattern[0]
    if pattern.ndim == 2:
        pattern = pattern[:, :, None]
    if pattern.ndim != 3 or pattern.shape[2] not in (1, 3):
        raise TriggerError(f"{place}: expected (H, W, C), got {tuple(pattern.shape)}")
    return Additive(delta=pattern.permute(2, 0, 1).contiguous() / 255)


def _quantisation(settings: Mapping[str, Any], where: Path) -> Transform:
    levels, dithering = settings.get("squeeze_num"), settings.get("dithering", False)
    if type(levels) is not int or type(dithering) is not bool:
        raise TriggerError(
            f"{where}: expected a whole number for squeeze_num and true or false for "
            f"dithering, got {levels!r:.40} and {dithering!r:.40}"
        )
    return Quantise(levels=levels, dithering=dithering)


_ATTACKS = {
    "badnet": _patch,
    "blended": _blend,
    "sig": _sinusoid,
    "lowFrequency": _low_frequency,
    "bpp": _quantisation,
}


def _sides_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    size = settings.get("img_size")
    if isinstance(size, list | tuple) and len(size) == 3:
        height, width = size[:2]
        if all(isinstance(side, int) and 1 <= side <= 4096 for side in (height, width)):
            return height, width
    data_set = settings.get("dataset")
    side = _SIDES.get(data_set) if isinstance(data_set, str) else None
    return None if side is None else (side, side)


def _number(settings: Mapping[str, Any], name: str, where: Path) -> float:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TriggerError(f"{where}: expected a number for {name}, got {value!r:.40}")
    return float(value)


def _picture(settings: Mapping[str, Any], name: str, where: Path) -> Tensor:
    return read_picture(_resource(settings, name, where), "image").to(torch.float32)


def _resource(settings: Mapping[str, Any], name: str, where: Path) -> Path:
    """Find a file that settings name from the top of BackdoorBench's folder."""
    text = settings.get(name)
    if not isinstance(text, str) or not text:
        raise TriggerError(
            f"{where}: expected {name}, the file with what is stamped, got {text!r:.40}; add it"
        )
    folders = [where.parent, *_tops_of(where.resolve())]
    for folder in folders:
        place = path_inside(folder, str(PurePosixPath(text)), what=name, error=TriggerError)
        if is_file(place):
            return place
    raise TriggerError(
        f"{where}: {name} is {text[:200]!r}, which is not in {' or '.join(map(str, folders))}; "
        "copy it there, or name a copy beside the settings"
    )


def _tops_of(where: Path) -> list[Path]:
    """Return the top of BackdoorBench's folder, where settings lie in it as it puts them."""
    names = [folder.name for folder in where.parents]
    if names[1:3] == ["attack", "config"]:
        return [where.parents[3]]
    return [where.parents[2]] if names[1:2] == ["record"] and len(where.parents) > 2 else []
