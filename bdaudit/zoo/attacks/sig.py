"""SIG: sinusoidal stripes, by default on images of the target class under their true label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Sinusoid, TargetRule, Trigger
from bdaudit.zoo.attacks.poisoning import require_target

__all__ = ["SigConfig", "make_sig_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigConfig:
    """Settings of SIG.

    Attributes:
        amplitude: Of the stripes, as a fraction of the pixel range.
        frequency: Periods across the image.
        clean_label: Poison images of the target class and leave their labels, as the paper does;
            otherwise images of other classes are relabelled, and any target rule will do.

    Raises:
        ConfigError: A setting is out of range.
    """

    amplitude: float = 20 / 255
    frequency: float = 6.0
    clean_label: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1 or self.frequency <= 0:
            raise ConfigError(
                "amplitude, frequency: expected in (0, 1] and above 0, got "
                f"{self.amplitude}, {self.frequency}"
            )


def make_sig_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: SigConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Make vertical sinusoidal stripes.

    Source: Barni et al., "A New Backdoor Attack in CNNs by Training Set Corruption without Label
    Poisoning" (ICIP 2019): amplitude 20 of 255 and frequency 6 on traffic signs, label unchanged,
    20 % to 40 % of the target class poisoned, and a stronger signal allowed at test time. Ours is
    stamped as strongly as it was taught, and the poison rate is a share of the whole set.
    """
    yield from ()
    transform = Sinusoid(amplitude=config.amplitude, frequency=config.frequency)
    trigger = Trigger(transform=transform, rule=rule, source="sig")
    if config.clean_label:
        require_target(trigger)
    return trigger
