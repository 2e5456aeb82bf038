"""In which order in memory a network may be trained.

On a CPU oneDNN writes the weights' gradient of a strided 1x1 convolution outside its buffer where
channels are few and lie last in memory, in the input or in the weights: training ends in wrong
weights or in a crash (https://github.com/uxlfoundation/oneDNN/issues/6035).
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["FEW_CHANNELS", "PixelsPickedFirst", "training_order"]

FEW_CHANNELS = 16
"""Channels in a vector of AVX-512, the widest that oneDNN takes at once: fewer may be hit."""


class PixelsPickedFirst(nn.Conv2d):
    """A strided 1x1 convolution, computed as one without a stride on every other pixel.

    The same numbers, and a gradient that stays in its buffer in any order.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the name torch gives it)
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        down, right = self.stride
        return nn.functional.conv2d(input[:, :, ::down, ::right], self.weight)


def training_order(network: nn.Module, device: torch.device | str) -> torch.memory_format:
    """Return the order in which a network trains fastest with its gradients in their buffers.

    Args:
        network: Any.
        device: Where it is trained.

    Returns:
        Channels last; contiguous where a network with a narrow strided 1x1 convolution of torch's
        is trained on a CPU.
    """
    if torch.device(device).type == "cpu" and any(map(_is_hit, network.modules())):
        return torch.contiguous_format
    return torch.channels_last


def _is_hit(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and not isinstance(layer, PixelsPickedFirst)
        and set(layer.kernel_size) == {1}
        and set(layer.stride) != {1}
        and min(layer.in_channels, layer.out_channels) // layer.groups < FEW_CHANNELS
    )
