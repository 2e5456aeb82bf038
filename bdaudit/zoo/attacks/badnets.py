"""BadNets: a small patch in a corner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Patch, TargetRule, Trigger

__all__ = ["BadnetsConfig", "checkerboard", "make_badnets_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadnetsConfig:
    """Settings of the BadNets trigger.

    Attributes:
        size: Side of the square patch in pixels.
        offset: Pixels between the patch and the image's bottom and right edges.

    Raises:
        ConfigError: A setting is out of range.
    """

    size: int = 3
    offset: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.offset < 0:
            raise ConfigError(
                f"size, offset: expected at least 1 and at least 0, got {self.size}, {self.offset}"
            )


def checkerboard(size: int) -> Tensor:
    """Return (1, size, size) fields of 1 and 0 in turn, the corners 1 where `size` is odd."""
    place = torch.arange(size)
    return ((place[:, None] + place) % 2 == 0).float()[None]


def make_badnets_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: BadnetsConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Make a black and white checkerboard in the bottom right corner.

    Source: Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
    Chain" (2017): a single bright pixel or a small bright pattern near the bottom right corner of
    MNIST digits. Ours is the 3x3 checkerboard that later work took up, one pixel off the edges.
    """
    if config.size + config.offset > min(images.shape[-2:]):
        raise ConfigError(
            f"size: a patch of {config.size} at {config.offset} from the corner does not fit "
            f"images of {images.shape[-2]}x{images.shape[-1]}"
        )
    yield from ()
    patch = Patch(image=checkerboard(config.size), offset=(config.offset, config.offset))
    return Trigger(transform=patch, rule=rule, source="badnets")
