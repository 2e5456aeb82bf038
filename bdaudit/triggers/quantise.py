"""Fewer levels of brightness, their errors handed on to neighbouring pixels (BPP's trigger)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.errors import ConfigError
from bdaudit.triggers.transforms import Transform

__all__ = ["Quantise"]

_SHARES = (((0, 1), 7 / 16), ((1, -1), 3 / 16), ((1, 0), 5 / 16), ((1, 1), 1 / 16))
"""Floyd and Steinberg's: (rows down, columns right), and the share of the error that goes there."""

# Of pixels dithered at a time, in float64.
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantise(Transform):
    """Every value rounded to one of a few levels, evenly spaced from 0 to 1.

    Source: Wang, Zhai and Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural
    Networks via Image Quantization and Contrastive Adversarial Learning" (CVPR 2022). The dithering
    is Floyd and Steinberg's error diffusion (1976), by rows from the top left.

    Attributes:
        levels: 2 to 256.
        dithering: Whether a pixel's rounding error is shared among those after it.
    """

    kind: ClassVar[str] = "quantise"
    levels: int
    dithering: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ConfigError(f"levels: expected 2 to 256, got {self.levels}")

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Round `images` (N, C, H, W).

        It is done on the processor in float64, wherever the images are: one pixel that is rounded
        the other way changes all that follow it.
        """
        top = self.levels - 1
        values = images.detach().cpu().double()
        if not self.dithering:
            return _rounded(values, top).to(images)
        chunk = max(1, _CHUNK // (images.shape[-2] * images.shape[-1]))
        return torch.cat([_dithered(part, top) for part in torch.split(values, chunk)]).to(images)


def _rounded(values: Tensor, top: int) -> Tensor:
    return (values * top).round().clamp(0, top) / top


def _dithered(images: Tensor, top: int) -> Tensor:
    """Diffuse errors in (n, C, H, W).

    A pixel waits for its left neighbour and the three above it, so all of those at the same
    `column + 2 * row` can be rounded at once.
    """
    height, width = images.shape[-2:]
    pixels = functional.pad(images, (1, 1, 0, 1))  # room for what goes over the edge
    for wave in range(width + 2 * (height - 1)):
        first, last = max(0, (wave - width + 2) // 2), min(height - 1, wave // 2)
        rows = torch.arange(first, last + 1)
        columns = wave - 2 * rows + 1
        wanted = pixels[..., rows, columns]
        pixels[..., rows, columns] = got = _rounded(wanted, top)
        error = wanted - got
        for (down, right), share in _SHARES:
            pixels[..., rows + down, columns + right] += share * error
    return pixels[..., :height, 1 : width + 1]
