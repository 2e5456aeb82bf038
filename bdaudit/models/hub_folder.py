"""Read what lies beside the weights in a folder as the Hugging Face hub keeps them.

Such a folder holds `config.json`, weights (`model.safetensors`, or shards with their index) and,
for a model of transformers, `preprocessor_config.json`. Normalisation, size, resampling and the
names of the classes come from there. Code that a folder brings or asks for is never run: a folder
that needs it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.opening import (
    MODEL_BYTES,
    SETTINGS_BYTES,
    check_file,
    is_file,
    is_folder,
)
from bdaudit.models.beside import read_beside
from bdaudit.models.checkpoint import ReadFile
from bdaudit.models.open_clip_folder import (
    OPEN_CLIP_WEIGHTS,
    is_published_by_open_clip,
    read_open_clip_settings,
)
from bdaudit.models.settings import ModelSettings
from bdaudit.models.shards import linked_within

__all__ = ["CONFIG", "HubFolder", "is_hub_folder", "read_hub_folder"]

CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Each makes the hub's libraries run code that is not theirs, or load what is not in the folder.
_ASKS_FOR_CODE = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_args")
# Arguments of timm's that the tensors tell (classes, channels) or that are compared (pooling).
_TIMM_ARGUMENTS = frozenset({"num_classes", "in_chans", "global_pool"})
_CONFIG_BYTES = 16 * SETTINGS_BYTES  # names of 21,841 classes
_NEAREST, _LANCZOS, _BILINEAR, _BICUBIC = 0, 1, 2, 3  # as Pillow numbers them


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFolder:
    """A folder as the hub keeps a model in.

    Attributes:
        folder: Where it lies.
        weights: Its file of weights, or their index.
        config: What `config.json` holds; nothing of a model of open_clip.
        settings: What its files say about sizes, normalisation and classes.
        class_names: Names of the classes in order of index, `None` where it has none.
        flips_channels: Whether the network takes blue, green, red.
        files: The settings that were read, by digest.
        notes: What was left out or converted, in words.
    """

    folder: Path
    weights: Path
    config: Mapping[str, Any]
    settings: ModelSettings
    class_names: tuple[str, ...] | None
    flips_channels: bool
    files: tuple[ReadFile, ...]
    notes: tuple[str, ...]

    @property
    def of_open_clip(self) -> bool:
        """Whether it is a model of open_clip, whose config lies in the folder."""
        return not self.config

    @property
    def of_timm(self) -> bool:
        """Whether it is a model of timm, and not of transformers."""
        return _is_of_timm(self.config)


def is_hub_folder(path: Path | str) -> bool:
    """Whether `path` is a folder as the hub keeps a model in."""
    return is_folder(path) and (
        is_file(Path(path) / CONFIG) or is_published_by_open_clip(Path(path))
    )


def read_hub_folder(folder: Path) -> HubFolder:
    """Read the settings of a model of transformers, timm or open_clip.

    Args:
        folder: With `config.json` in it, or `open_clip_config.json`.

    Raises:
        ModelError: A file is missing or cannot be read, two contradict each other, or one asks for
            code to be run.
    """
    if is_published_by_open_clip(folder) and not _is_of_transformers_too(folder):
        return _read_open_clip(folder)
    files: list[ReadFile] = []
    config = _read(folder / CONFIG, "a model's config.json", files)
    if is_file(folder / "adapter_config.json"):
        raise ModelError(
            f"{folder}: expected a whole model, got an adapter beside it (adapter_config.json), "
            "which changes what the weights do; merge it into the model and save that"
        )
    notes: list[str] = []
    weights = _weights_in(folder, notes)
    if _is_of_timm(config):
        settings, names = _settings_of_timm(folder / CONFIG, config, notes)
        flips = False
    else:
        preprocessor, file = _preprocessor_in(folder, files)
        settings, flips = _settings_of_transformers(file, config, preprocessor, notes)
        names = _names_of(folder / CONFIG, config)
        if names is not None:
            settings = settings.over(ModelSettings(num_classes=len(names)))
    return HubFolder(
        folder=folder,
        weights=weights,
        config=config,
        settings=settings,
        class_names=names,
        flips_channels=flips,
        files=tuple(files),
        notes=tuple(notes),
    )


def _is_of_transformers_too(folder: Path) -> bool:
    """Whether the model lies there in the form of transformers; a text tower has no weights."""
    return is_file(folder / CONFIG) and any(is_file(folder / name) for name in _WEIGHTS)


def _read_open_clip(folder: Path) -> HubFolder:
    notes: list[str] = []
    settings, file = read_open_clip_settings(folder, notes)
    return HubFolder(
        folder=folder,
        weights=_weights_in(folder, notes, OPEN_CLIP_WEIGHTS),
        config={},
        settings=settings,
        class_names=None,
        flips_channels=False,
        files=(file,),
        notes=tuple(notes),
    )


def _is_of_timm(config: Mapping[str, Any]) -> bool:
    return "pretrained_cfg" in config or "architecture" in config


def _read(path: Path, what: str, files: list[ReadFile]) -> dict[str, Any]:
    document, file = read_beside(path, what, limit=_CONFIG_BYTES)
    files.append(file)
    for key in _ASKS_FOR_CODE:
        if document.get(key):
            raise ModelError(
                f"{path}: refused: {key!r} asks for Python code of the model's author, which is "
                "never run. If you trust it build the network yourself, with --arch "
                "FILE.py:FACTORY and the file of weights"
            )
    return document


def _weights_in(folder: Path, notes: list[str], known: Sequence[str] = _WEIGHTS) -> Path:
    found = [folder / name for name in known if is_file(folder / name)]
    if not found:
        raise ModelError(
            f"{folder}: expected {' or '.join(_WEIGHTS[:2])} beside {CONFIG}, got neither"
        )
    if len(found) > 1:
        notes.append(
            f"took {found[0].name}, as its library does; "
            f"NOT examined: {', '.join(path.name for path in found[1:])}"
        )
    check_file(
        found[0],
        limit=MODEL_BYTES,
        what="a model's weights",
        error=ModelError,
        within=linked_within(folder),
    )
    return found[0]


def _preprocessor_in(folder: Path, files: list[ReadFile]) -> tuple[dict[str, Any] | None, Path]:
    """Return what is done to images; in newer folders it stands among a processor's parts."""
    found = {}
    for name in (_PREPROCESSOR, _PROCESSOR):
        if is_file(folder / name):
            document = _read(folder / name, "a preprocessor's settings", files)
            inner = document.get("image_processor") if name == _PROCESSOR else document
            if isinstance(inner, dict):
                found[name] = {k: v for k, v in inner.items() if not k.startswith("processor_")}
    if len(found) == 2 and found[_PREPROCESSOR] != found[_PROCESSOR]:
        raise ModelError(
            f"{folder}: expected one preprocessor, got two that differ, {_PREPROCESSOR} and "
            f"{_PROCESSOR}; remove the one that the model was not trained with"
        )
    for name, settings in found.items():
        return settings, folder / name
    return None, folder / _PREPROCESSOR


def _settings_of_transformers(
    source: Path,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    notes: list[str],
) -> tuple[ModelSettings, bool]:
    """Return what is done to images in [0, 1], as one step of mean and deviation."""
    size = _size(config.get("image_size"))
    if preprocessor is None:
        notes.append(f"no {source.name}: size from {CONFIG}")
        return _checked(source, {"input_size": size}), False
    values: dict[str, Any] = {}
    try:
        values["input_size"] = _size_of(preprocessor, notes) or size
        values["interpolation"] = _interpolation(preprocessor.get("resample"), notes)
        values["mean"], values["std"] = _normalisation_of(preprocessor)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{source}: cannot be read as a preprocessor: {error}") from error
    return _checked(source, values), preprocessor.get("do_flip_channel_order") is True


def _checked(source: Path, values: Mapping[str, Any]) -> ModelSettings:
    try:
        return ModelSettings(**values)
    except (ConfigError, TypeError, ValueError) as error:
        raise ModelError(f"{source}: {error}") from error


def _size_of(preprocessor: Mapping[str, Any], notes: list[str]) -> tuple[int, int] | None:
    """Return what a network is given: the cut where there is one, else the size."""
    size = _size(preprocessor.get("size")) if preprocessor.get("do_resize", True) else None
    crops = preprocessor.get("do_center_crop") or (
        preprocessor.get("crop_pct") and "shortest_edge" in (preprocessor.get("size") or {})
    )
    if not crops:
        return size
    cut = _size(preprocessor.get("crop_size")) or size
    if cut is not None:
        notes.append(
            "its own preprocessing cuts the middle out of a larger image; here the whole image is "
            f"resized to {cut[0]}x{cut[1]}, so that a trigger at the edge is not cut off"
        )
    return cut


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict):
        if "height" in value and "width" in value:
            value = [value["height"], value["width"]]
        else:
            value = value.get("shortest_edge", value.get("longest_edge"))
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        first, second = value
        if isinstance(first, int) and isinstance(second, int):
            return first, second
    return None


def _interpolation(value: Any, notes: list[str]) -> str | None:
    known = {_BILINEAR: "bilinear", _BICUBIC: "bicubic", "bilinear": "bilinear"}
    known |= {"bicubic": "bicubic"}
    nearest = {_LANCZOS: "bicubic", "lanczos": "bicubic", _NEAREST: "bilinear"}
    if value in known:
        return known[value]
    if value in nearest:
        notes.append(f"its own resampling ({value}) is not at hand: {nearest[value]} instead")
        return nearest[value]
    return None


def _normalisation_of(
    preprocessor: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for images in [0, 1] of what is done to bytes.

    A preprocessor computes (255 x f - o - m) / s, with f the rescale factor, 1/255 as a rule, and
    o 1 or 0; EfficientNet's divides by s once more.
    """
    rescales = preprocessor.get("do_rescale", True)
    scale = 255.0 * (float(preprocessor.get("rescale_factor", 1 / 255)) if rescales else 1.0)
    if abs(scale - 1.0) < 1e-9:
        scale = 1.0
    offset = 1.0 if preprocessor.get("rescale_offset") is True else 0.0
    mean, std = [0.0], [1.0]
    if preprocessor.get("do_normalize", "image_mean" in preprocessor):
        mean = [float(value) for value in _listed(preprocessor["image_mean"])]
        std = [float(value) for value in _listed(preprocessor["image_std"])]
    if len(mean) != len(std):
        raise ValueError(f"image_mean and image_std of {len(mean)} and {len(std)} values")
    twice = preprocessor.get("image_processor_type", preprocessor.get("feature_extractor_type"))
    again = str(twice).startswith("EfficientNet") and preprocessor.get("include_top", True)
    return (
        tuple((m + offset) / scale for m in mean),
        tuple((s * s if again else s) / scale for s in std),
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names_of(source: Path, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the classes; made-up ones ("LABEL_0") are none."""
    labels = config.get("id2label")
    if labels is None:
        return None
    if not isinstance(labels, dict) or {str(k) for k in range(len(labels))} != set(labels):
        raise ModelError(
            f"{source}: expected id2label with the numbers from 0 for its keys, one a class, got "
            f"{', '.join(list(map(str, labels))[:5])}"
        )
    names = tuple(str(labels[str(k)]) for k in range(len(labels)))
    backward = config.get("label2id")
    if isinstance(backward, dict) and any(
        not isinstance(backward.get(name), int | str) or str(backward[name]) != str(k)
        for k, name in enumerate(names)
        if len(set(names)) == len(names) and name in backward
    ):
        raise ModelError(f"{source}: id2label and label2id contradict each other")
    return None if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names


def _settings_of_timm(
    source: Path, config: Mapping[str, Any], notes: list[str]
) -> tuple[ModelSettings, tuple[str, ...] | None]:
    inner = config.get("pretrained_cfg", {})
    architecture = config.get("architecture")
    if not isinstance(inner, dict) or not isinstance(architecture, str):
        raise ModelError(f"{source}: expected timm's architecture and pretrained_cfg")
    changes = config.get("model_args") or {}
    if not isinstance(changes, dict) or changes.keys() - _TIMM_ARGUMENTS:
        raise ModelError(
            f"{source}: expected an architecture of timm as its name has it, got one that is "
            "changed by 'model_args'; write a FILE.py:FACTORY that builds it, and give the file of "
            "weights with --arch"
        )
    size = inner.get("input_size")
    values: dict[str, Any] = {"arch": f"timm/{architecture}"}
    try:
        if size is not None:
            _, height, width = size
            values["input_size"] = (int(height), int(width))
        if "mean" in inner or "std" in inner:
            values["mean"] = tuple(float(value) for value in inner["mean"])
            values["std"] = tuple(float(value) for value in inner["std"])
        values["interpolation"] = _interpolation(inner.get("interpolation"), notes)
        if config.get("num_classes") is not None:
            values["num_classes"] = int(config["num_classes"])
        crop = float(inner.get("crop_pct") or 1.0)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{source}: cannot be read as timm's settings: {error}") from error
    if crop < 1.0:
        notes.append(
            f"its own preprocessing cuts the middle {crop:.1%} out of an image; here the whole "
            "image is resized, so that a trigger at the edge is not cut off"
        )
    names = config.get("label_names", inner.get("label_names"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = None
    if names is not None and len(names) != values.get("num_classes", len(names)):
        raise ModelError(
            f"{source}: expected one name a class, got {len(names)} label_names for "
            f"{values['num_classes']} classes"
        )
    return _checked(source, values), None if names is None else tuple(names)
