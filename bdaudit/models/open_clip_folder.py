"""A folder in which open_clip publishes a model: its config, weights and tokenizer.

`open_clip_config.json` holds the architecture (`model_cfg`) and what is done to images
(`preprocess_cfg`). Source: open_clip's `push_to_hf_hub`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.opening import SETTINGS_BYTES, is_file
from bdaudit.models.beside import read_beside
from bdaudit.models.checkpoint import ReadFile
from bdaudit.models.settings import ModelSettings

__all__ = [
    "OPEN_CLIP_CONFIG",
    "OPEN_CLIP_WEIGHTS",
    "is_published_by_open_clip",
    "read_open_clip_settings",
]

OPEN_CLIP_CONFIG = "open_clip_config.json"
_ARCH = f"open_clip/{OPEN_CLIP_CONFIG.removesuffix('.json')}"  # as the config in the folder says
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def read_open_clip_settings(folder: Path, notes: list[str]) -> tuple[ModelSettings, ReadFile]:
    """Read what a folder says is done to images.

    Raises:
        ModelError: Its config cannot be read.
    """
    path = folder / OPEN_CLIP_CONFIG
    document, file = read_beside(path, "an open_clip config", limit=SETTINGS_BYTES)
    if not isinstance(document.get("model_cfg"), dict):
        raise ModelError(f"{path}: expected an open_clip config with a model_cfg")
    said = document.get("preprocess_cfg") or {}
    if not isinstance(said, dict):
        raise ModelError(f"{path}: expected preprocess_cfg to be a table")
    values: dict[str, Any] = {"arch": _ARCH}
    try:
        for name in ("mean", "std"):
            if said.get(name) is not None:
                values[name] = tuple(float(value) for value in said[name])
        if said.get("interpolation") in ("bilinear", "bicubic"):
            values["interpolation"] = said["interpolation"]
        settings = ModelSettings(**values)
    except (ConfigError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if said.get("resize_mode", "shortest") != "squash":
        notes.append(
            "its own preprocessing cuts or pads what is not square; here the whole image is "
            "resized, so that a trigger at the edge is not cut off"
        )
    return settings, file


def is_published_by_open_clip(folder: Path) -> bool:
    """Return whether a folder has open_clip's config and weights."""
    return is_file(folder / OPEN_CLIP_CONFIG) and any(
        is_file(folder / name) for name in OPEN_CLIP_WEIGHTS
    )
