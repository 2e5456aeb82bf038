"""The reflection of another picture, as in a pane of glass (Refool's trigger)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdaudit.data.images import fit_images
from bdaudit.errors import ConfigError
from bdaudit.triggers.transforms import Transform, require_channels

__all__ = ["MOST_PICTURES", "Reflection"]

MOST_PICTURES = 64
_GAMMA = 2.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Reflection(Transform):
    """One of several pictures mixed in as light is: `((1 - alpha) x^2.2 + alpha r^2.2)^(1 / 2.2)`.

    Which picture an image gets hangs on its own pixels: the sum of its values out of 255, modulo
    the number of pictures. So an image is stamped alike whenever and wherever it is.

    Source: Liu et al., "Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks"
    (Refool, ECCV 2020), where every image draws its reflection from a set.

    Attributes:
        pictures: (K, C, h, w) in [0, 1], K of 1 to 64, what is reflected, blurred or doubled as
            its maker liked; resized to the images. C of 1 is reflected in every channel.
        alpha: Share of the light that is reflected, in (0, 1].
    """

    kind: ClassVar[str] = "reflection"
    pictures: Tensor
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(self.alpha))
        shape = tuple(self.pictures.shape)
        if len(shape) != 4 or not 1 <= shape[0] <= MOST_PICTURES or shape[1] not in (1, 3):
            raise ConfigError(
                f"pictures: expected (K, C, h, w) with K of 1 to {MOST_PICTURES} and C of 1 or 3, "
                f"got {shape}"
            )
        if not self.pictures.is_floating_point() or self.pictures.numel() == 0:
            raise ConfigError(
                f"pictures: expected floats in [0, 1], got {self.pictures.dtype} {shape}"
            )
        if not ((self.pictures >= 0) & (self.pictures <= 1)).all():
            raise ConfigError("pictures: expected values in [0, 1], got others")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: expected a share in (0, 1], got {self.alpha}")

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Mix a reflection into each of `images` (N, C, H, W)."""
        require_channels(self.pictures[0], images, self.kind)
        size = (self.pictures.shape[1], images.shape[-2], images.shape[-1])
        reflected = fit_images(self.pictures.to(images), size).pow(_GAMMA)
        grey_levels = (images.float() * 255).round().long().flatten(1).sum(dim=1)
        chosen = reflected[grey_levels % len(reflected)]
        light = torch.lerp(images.clamp(0, 1).pow(_GAMMA), chosen, self.alpha)
        return light.pow(1 / _GAMMA)
