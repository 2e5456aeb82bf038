"""Where a computation runs, and what it runs with."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from bdaudit.errors import ConfigError
from bdaudit.records import Environment
from bdaudit.version import __version__

__all__ = ["describe_environment", "resolve_device"]

_PACKAGES = (
    *("torch", "torchvision", "numpy", "scipy", "safetensors", "pydantic", "pillow"),
    *("timm", "onnx", "onnxruntime", "openvino", "open_clip_torch"),
)


def resolve_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Args:
        device: `auto` takes CUDA when it is available and the CPU otherwise.

    Raises:
        ConfigError: The name is none of these, or that CUDA device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {device} asked for, {torch.cuda.device_count()} CUDA devices found; "
            "use --device auto or cpu"
        )
    return chosen


def describe_environment(device: torch.device) -> Environment:
    """Record versions, platform and device."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    label = str(device)
    if device.type == "cuda":
        label = f"{device} ({torch.cuda.get_device_name(device)})"
    return Environment(
        bdaudit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        device=label,
        packages=packages,
    )
