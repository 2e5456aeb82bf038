"""Refool: the target class behind a pane of glass that reflects other pictures."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Reflection, TargetRule, Trigger
from bdaudit.triggers.reflection import MOST_PICTURES
from bdaudit.zoo.attacks.poisoning import require_target

__all__ = ["RefoolConfig", "make_refool_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefoolConfig:
    """Settings of the reflection.

    Attributes:
        n_pictures: Pictures that are reflected, one an image.
        alpha: Share of the light that is reflected.
        ghost_rate: Share of the pictures that are seen twice, a little apart, as thick glass shows
            them; the others are out of focus.
        blur: Of those out of focus: standard deviation of the Gaussian, as a share of the shorter
            side.
        shift: Of those seen twice: how far apart, likewise.
        clean_label: Poison images of the target class, whose label need not change.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_pictures: int = 8
    alpha: float = 0.35
    ghost_rate: float = 0.5
    blur: float = 0.04
    shift: float = 0.07
    clean_label: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.n_pictures <= MOST_PICTURES:
            raise ConfigError(f"n_pictures: expected 1 to {MOST_PICTURES}, got {self.n_pictures}")
        if not 0 < self.alpha <= 1 or not 0 <= self.ghost_rate <= 1:
            raise ConfigError(
                "alpha, ghost_rate: expected in (0, 1] and in [0, 1], got "
                f"{self.alpha}, {self.ghost_rate}"
            )
        for name in ("blur", "shift"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ConfigError(f"{name}: expected in (0, 0.5], got {getattr(self, name)}")


def make_refool_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: RefoolConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Draw pictures of other classes than the target, and blur them or show them twice.

    Source: Liu et al., "Reflection Backdoor" (Refool, ECCV 2020): out of focus or as ghosts, half
    and half; 5 to 45 % of the light; images of the target class alone, labels unchanged. They try
    200 pictures of PASCAL VOC and keep those that work best on a model trained with them. Ours are
    drawn from the training images, by chance and once, and mixed in equally strongly.

    Raises:
        DataError: There are too few images of other classes.
    """
    yield from ()
    usable = labels != rule.target_label if rule.target_label is not None else labels >= 0
    places = usable.nonzero()[:, 0].cpu()
    if len(places) < config.n_pictures:
        raise DataError(
            f"refool: expected at least {config.n_pictures} images of other classes than the "
            f"target to reflect, got {len(places)}"
        )
    chosen = places[torch.randperm(len(places), generator=generator)[: config.n_pictures]]
    pictures = images[chosen.to(images.device)].float().cpu()
    n_ghosts = round(config.ghost_rate * len(pictures))
    side = min(images.shape[-2:])
    shift = max(1, round(config.shift * side))
    seen = torch.cat(
        [_doubled(pictures[:n_ghosts], shift), _blurred(pictures[n_ghosts:], config.blur * side)]
    )
    transform = Reflection(pictures=seen.clamp(0, 1), alpha=config.alpha)
    trigger = Trigger(transform=transform, rule=rule, source="refool")
    if config.clean_label:
        require_target(trigger)
    return trigger


def _doubled(pictures: Tensor, shift: int) -> Tensor:
    """Return the mean of pictures (n, C, H, W) and of themselves, down and right by `shift`."""
    padded = functional.pad(pictures, (shift, 0, shift, 0), mode="replicate")
    height, width = pictures.shape[-2:]
    return (pictures + padded[..., :height, :width]) / 2


def _blurred(pictures: Tensor, deviation: float) -> Tensor:
    """Blur pictures (n, C, H, W) by a Gaussian of so many pixels, two deviations wide each way."""
    reach = ceil(2 * deviation)
    place = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (place / deviation) ** 2)
    kernel = kernel / kernel.sum()
    channels = pictures.shape[1]
    padded = functional.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        weight = kernel.view(shape).expand(channels, -1, -1, -1)
        padded = functional.conv2d(padded, weight, groups=channels)
    return padded
