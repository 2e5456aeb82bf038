"""Turn tensors that torch quantised to 8 bits back into floats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bdaudit.errors import ModelError

__all__ = ["dequantise", "unpack_layers"]

_PACKED = "._packed_params._packed_params"


def unpack_layers(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return weight and bias of the linear layers that torch keeps as a packed pair."""
    unpacked: dict[str, Tensor] = {}
    for name, value in entries.items():
        if not isinstance(name, str) or not name.endswith(_PACKED):
            continue
        if isinstance(value, tuple) and len(value) == 2:
            layer = name.removesuffix(_PACKED)
            for part, tensor in zip(("weight", "bias"), value, strict=True):
                if isinstance(tensor, Tensor):
                    unpacked[f"{layer}.{part}"] = tensor
    return unpacked


def dequantise(path: Path, tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return the same tensors with the quantised ones as float32.

    The scale and zero point of a quantised layer's output go with them: in float there is nothing
    to round.

    Raises:
        ModelError: A quantised tensor cannot be read.
    """
    names = {name for name, tensor in tensors.items() if tensor.is_quantized}
    if not names:
        return tensors
    layers = {name.rpartition(".")[0] for name in names}
    beside = {f"{layer}.{part}" for layer in layers for part in ("scale", "zero_point")}
    try:
        floats = {
            name: tensor.dequantize() if name in names else tensor
            for name, tensor in tensors.items()
            if name not in beside
        }
    except Exception as error:
        raise ModelError(
            f"{path}: expected weights, got quantised tensors that cannot be turned into floats; "
            "give the model as it was before it was quantised, or export it to ONNX and audit it "
            "with --mode query"
        ) from error
    notes.append(
        f"turned {len(names)} quantised tensors into float32: the quantised model rounds between "
        "its layers too, and may answer otherwise than this one"
    )
    return floats
