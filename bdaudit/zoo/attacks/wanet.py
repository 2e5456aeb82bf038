"""WaNet: the image bent along a smooth grid, with other bends taught as harmless."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import TargetRule, Trigger, Warp, control_grid, elastic_grid
from bdaudit.zoo.attacks.poisoning import Poisoning, draw_cover, make_poisoning

__all__ = ["WanetConfig", "make_wanet_trigger", "poison_wanet"]

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WanetConfig:
    """Settings of WaNet.

    Attributes:
        control_points: Of the grid, a side.
        strength: A displacement of 1 moves a pixel by about `strength / 2` pixels.
        cover_ratio: Noise mode: images bent along disturbed grids and left at their true label, as
            a multiple of the poisoned ones; 0 leaves it out.

    Raises:
        ConfigError: A setting is out of range.
    """

    control_points: int = 4
    strength: float = 0.5
    cover_ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.control_points < 2 or self.strength <= 0 or self.cover_ratio < 0:
            raise ConfigError(
                "control_points, strength, cover_ratio: expected at least 2, above 0 and at least "
                f"0, got {self.control_points}, {self.strength}, {self.cover_ratio}"
            )


def make_wanet_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: WanetConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Draw a smooth warping grid for images of this size.

    Source: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack" (ICLR 2021):
    4 control points, strength 0.5, 10 % poisoned and 20 % cover images.
    """
    yield from ()
    grid = elastic_grid(
        control_grid(config.control_points, generator),
        (images.shape[-2], images.shape[-1]),
        strength=config.strength,
    )
    return Trigger(transform=Warp(grid=grid), rule=rule, source="wanet")


def poison_wanet(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: WanetConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Bend a share of the images, and others along the grid plus noise under their true label.

    The noise is the paper's: uniform in [-1, 1] / H for every pixel of every image, H its height.
    The paper draws it, and which images are poisoned, anew for every batch; here both are drawn
    once, so that the poisoned set is data like any other.
    """
    yield from ()
    poisoning = make_poisoning(
        images,
        labels,
        num_classes=num_classes,
        trigger=trigger,
        poison_rate=poison_rate,
        generator=generator,
        preferred=preferred,
    )
    cover = draw_cover(poisoning, config.cover_ratio, generator)
    assert isinstance(trigger.transform, Warp)
    for chosen in torch.split(cover, _BATCH):
        poisoning.images[chosen] = _disturbed(images[chosen], trigger.transform.grid, generator)
    return replace(poisoning, cover=cover)


def _disturbed(images: Tensor, grid: Tensor, generator: torch.Generator) -> Tensor:
    """Bend each of `images` (n, C, H, W) along its own disturbed version of `grid` (H, W, 2)."""
    noise = torch.rand(len(images), *grid.shape, generator=generator) * 2 - 1
    grids = (grid + noise / grid.shape[0]).clamp(-1, 1).to(images)
    return functional.grid_sample(images, grids, mode="bilinear", align_corners=True).clamp(0, 1)
