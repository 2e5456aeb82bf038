"""FTrojan and CTRL: two frequencies of the colour channels raised."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Additive, TargetRule, Trigger
from bdaudit.zoo.attacks.low_frequency import cosine_basis
from bdaudit.zoo.attacks.poisoning import require_target

__all__ = ["CtrlConfig", "FtrojanConfig", "make_frequency_trigger"]

_FROM_U_AND_V = ((0.0, 1.140), (-0.395, -0.581), (2.032, 0.0))
"""How red, green and blue grow with U and V (BT.601)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FtrojanConfig:
    """Settings of a trigger in the frequency domain.

    Attributes:
        magnitude: Added to each coefficient, in pixel units (the papers' are out of 255).
        block: Side of the squares that are transformed; at most the image's shorter side, and then
            `frequencies` are scaled with it.
        frequencies: Rows and columns, alike, of the coefficients that are raised.
        clean_label: Poison images of the target class, whose label need not change.

    Raises:
        ConfigError: A setting is out of range.
    """

    magnitude: float = 30 / 255
    block: int = 32
    frequencies: tuple[int, ...] = (15, 31)
    clean_label: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.magnitude) and self.magnitude > 0):
            raise ConfigError(f"magnitude: expected above 0, got {self.magnitude}")
        if self.block < 2:
            raise ConfigError(f"block: expected 2 or more, got {self.block}")
        if not self.frequencies or not all(0 <= f < self.block for f in self.frequencies):
            raise ConfigError(
                f"frequencies: expected some of 0 to {self.block - 1}, got {self.frequencies}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CtrlConfig(FtrojanConfig):
    """Settings of CTRL: those of FTrojan, stronger and on images of the target class.

    Attributes:
        magnitude: As of FTrojan.
        clean_label: As of FTrojan.
    """

    magnitude: float = 100 / 255
    clean_label: bool = True


def make_frequency_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: FtrojanConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Raise two coefficients of the cosine transform of every block, in U and in V.

    To add to a coefficient is to add its cosines, and colours follow linearly from Y, U and V. So
    but for clipping the trigger is a pattern added to every image, and that is what is written.
    Grey images have no U and V; their one channel gets the pattern.

    Source: Wang et al., "An Invisible Black-box Backdoor Attack through Frequency Domain" (FTrojan,
    ECCV 2022): 30 out of 255 at frequencies 15 and 31 of blocks of 32. Li et al., "An
    Embarrassingly Simple Backdoor Attack on Self-supervised Learning" (CTRL, ICCV 2023): the same
    with 100 out of 255 on a hundredth of the images, all of the target class, for training without
    labels; ours is taught with them. Ours neither rounds to bytes nor keeps U and V in their range.
    """
    yield from ()
    channels, height, width = images.shape[1:]
    side = min(config.block, height, width)
    plane = torch.zeros(side, side)
    for frequency in config.frequencies:
        place = round(frequency * (side - 1) / (config.block - 1))
        wave = cosine_basis(side, side)[place]
        plane += torch.outer(wave, wave) / wave.square().sum()  # a coefficient of 1, orthonormal
    tiles = (-(-height // side), -(-width // side))
    pattern = config.magnitude * plane.repeat(tiles)[:height, :width]
    if channels == 3:
        growth = torch.tensor(_FROM_U_AND_V).sum(dim=1)
        delta = growth[:, None, None] * pattern
    else:
        delta = pattern[None]
    trigger = Trigger(transform=Additive(delta=delta), rule=rule, source="frequency")
    if config.clean_label:
        require_target(trigger)
    return trigger
