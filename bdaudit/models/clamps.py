"""Upper bounds on what layers put out: how a network whose activations are bounded is kept.

A bounded layer has a child `clamp` with one bound a channel, so the bounds lie among the network's
tensors, as `<layer>.clamp.at_most`, and are written and digested with them. Files need nothing
beside: a name of this form says which layer is bounded. A program that does not know it refuses the
file for a tensor too many, and never runs the network without its bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.models.weight_sets import quote_names

__all__ = [
    "Clampable",
    "OutputClamp",
    "clamp_output",
    "describe_clamps",
    "put_clamps",
    "remove_clamps",
    "without_clamps",
]

Clampable: TypeAlias = nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm
"""A layer whose output can be bounded, channel by channel."""

_ENDING = ".clamp.at_most"


class OutputClamp(nn.Module):
    """Brings each channel down to its bound; nothing is raised.

    Args:
        at_most: (channels,) bounds.
        last: Whether channels are the last dimension, as of a linear layer; else the second.
    """

    def __init__(self, at_most: Tensor, *, last: bool) -> None:
        super().__init__()
        self.at_most = nn.Parameter(at_most)
        self._last = last

    def forward(self, features: Tensor) -> Tensor:
        """Map features (n, channels, ...), or (..., channels), to as many."""
        bounds: Tensor = self.at_most
        if not self._last:
            bounds = bounds.view(-1, *[1] * (features.ndim - 2))
        return torch.minimum(features, bounds.to(features.dtype))


def _through_clamp(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    clamp = layer.clamp
    assert isinstance(clamp, OutputClamp)
    bounded: Tensor = clamp(output)
    return bounded


def channels_of(layer: Clampable) -> int:
    """Return how many bounds a layer takes."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else layer.num_features


def clamp_output(layer: Clampable, at_most: Tensor | float) -> OutputClamp:
    """Bound what a layer puts out, from now on and in every copy of it.

    Args:
        layer: Gets a child `clamp`; one that it has is replaced.
        at_most: (channels,) bounds, or one for all; they are put on the layer's device.

    Returns:
        The child, whose bounds are a parameter of the network.
    """
    bounds = torch.as_tensor(at_most, dtype=torch.float32).expand(channels_of(layer)).clone()
    if layer.weight is not None:
        bounds = bounds.to(layer.weight.device)
    is_clamped = isinstance(getattr(layer, "clamp", None), OutputClamp)
    layer.clamp = OutputClamp(bounds, last=isinstance(layer, nn.Linear)).train(layer.training)
    if not is_clamped:
        layer.register_forward_hook(_through_clamp)
    return layer.clamp


def remove_clamps(network: nn.Module) -> None:
    """Take all bounds from a network."""
    for layer in network.modules():
        if isinstance(getattr(layer, "clamp", None), OutputClamp):
            del layer.clamp
            # By the function, since a copied layer has no handle of its hook.
            ours = [key for key, hook in layer._forward_hooks.items() if hook is _through_clamp]
            for key in ours:
                del layer._forward_hooks[key]


def without_clamps(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide a file's tensors into those of the architecture and the bounds by name of layer."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(_ENDING)}
    bounds = {
        name.removesuffix(_ENDING): tensor
        for name, tensor in tensors.items()
        if name.endswith(_ENDING)
    }
    return plain, bounds


def describe_clamps(bounds: Mapping[str, Tensor]) -> str:
    """Say in a note which layers are bounded."""
    return f"outputs of {len(bounds)} layers are bounded from above ({quote_names(sorted(bounds))})"


def put_clamps(
    network: nn.Module, bounds: Mapping[str, Tensor], path: Path, notes: list[str]
) -> None:
    """Bound the layers that a file names.

    Args:
        network: Filled with the file's other tensors; changed in place.
        bounds: As `without_clamps` gives them.
        path: The file.
        notes: Takes what was done.

    Raises:
        ModelError: There is no such layer, or the bounds do not fit it.
    """
    layers = dict(network.named_modules())
    for name, at_most in bounds.items():
        layer = layers.get(name)
        if not isinstance(layer, Clampable):
            found = "no such layer" if layer is None else f"a {type(layer).__name__}"
            raise ModelError(
                f"{path}: expected a convolution, a linear layer or a batch norm {name[:80]!r}, "
                f"whose output {(name + _ENDING)[:100]!r} bounds, got {found} in the network; the "
                "file is damaged or of another network"
            )
        if at_most.shape != (channels_of(layer),) or not at_most.is_floating_point():
            raise ModelError(
                f"{path}: expected {channels_of(layer)} bounds in {(name + _ENDING)[:100]!r}, one "
                f"a channel, got {tuple(at_most.shape)} of {at_most.dtype}"
            )
        clamp_output(layer, at_most.float().clone())
    if bounds:
        notes.append(describe_clamps(bounds))
