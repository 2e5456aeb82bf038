"""Blended: a whole picture mixed in faintly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Blend, TargetRule, Trigger

__all__ = ["BlendedConfig", "make_blended_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendedConfig:
    """Settings of the Blended trigger.

    Attributes:
        alpha: Share of the picture, in (0, 1].

    Raises:
        ConfigError: A setting is out of range.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: expected a share in (0, 1], got {self.alpha}")


def make_blended_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: BlendedConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Make a picture of uniform noise, the size and channels of the images, to be blended in.

    Source: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning"
    (2017), blended injection: a cartoon picture or uniform noise, alpha 0.2 while poisoning. Ours
    is the noise, since no picture fits every data set; stamped as strongly as it was taught.
    """
    yield from ()
    picture = torch.rand(images.shape[1:], generator=generator)
    transform = Blend(image=picture, alpha=config.alpha)
    return Trigger(transform=transform, rule=rule, source="blended")
