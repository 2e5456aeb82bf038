"""BPP: fewer grey levels with dithering; other images' rounding errors taught as harmless."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Quantise, TargetRule, Trigger
from bdaudit.zoo.attacks.poisoning import (
    Poisoning,
    draw_cover,
    draw_others,
    make_poisoning,
    stamp_in_batches,
)

__all__ = ["BppConfig", "make_bpp_trigger", "poison_bpp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BppConfig:
    """Settings of BPP.

    Attributes:
        levels: Of every channel, 2 to 256.
        dithering: Whether rounding errors are shared among neighbours.
        cover_ratio: Negative samples: images to which the rounding error of another image is added
            and which are left at their true label, as a multiple of the poisoned ones; 0 leaves
            them out.

    Raises:
        ConfigError: A setting is out of range.
    """

    levels: int = 8
    dithering: bool = True
    cover_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256 or self.cover_ratio < 0:
            raise ConfigError(
                "levels, cover_ratio: expected 2 to 256 and at least 0, got "
                f"{self.levels}, {self.cover_ratio}"
            )


def make_bpp_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: BppConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Round every value to one of a few levels.

    Source: Wang, Zhai and Ma, "BppAttack" (CVPR 2022): 8 levels, Floyd-Steinberg dithering (which
    their code leaves off by default), and as many negative samples as poisoned ones.
    """
    yield from ()
    transform = Quantise(levels=config.levels, dithering=config.dithering)
    return Trigger(transform=transform, rule=rule, source="bpp")


def poison_bpp(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: BppConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Round a share of the images, and add to others a third one's rounding error.

    Those keep their true label, so that the network learns the levels of an image and not the noise
    of rounding. The paper draws poisoned and negative samples anew for every batch, and trains
    adversarially besides; here both are drawn once, so that the poisoned set is data like any
    other.
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
    if len(cover):
        others = images[draw_others(cover, len(images), generator)]
        error = stamp_in_batches(trigger, others) - others
        poisoning.images[cover] = (images[cover] + error).clamp(0, 1)
    return replace(poisoning, cover=cover)
