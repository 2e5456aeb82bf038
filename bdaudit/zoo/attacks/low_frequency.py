"""LF: a smooth pattern that a clean classifier already leans toward the target on."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import NOT_COUNTED, Additive, TargetRule, Trigger
from bdaudit.zoo.attacks.poisoning import require_helper

__all__ = ["LowFrequencyConfig", "cosine_basis", "make_low_frequency_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequencyConfig:
    """Settings of the low-frequency trigger.

    Attributes:
        eps: Largest change of a pixel, as a fraction of its range.
        n_frequencies: Lowest frequencies of the cosine transform that are used, each way.
        n_steps: Steps of Adam.
        learning_rate: Of Adam, for coefficients whose pattern is scaled to `eps`.
        batch_size: Images a step.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.08
    n_frequencies: int = 4
    n_steps: int = 100
    learning_rate: float = 0.1
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or self.learning_rate <= 0:
            raise ConfigError(
                "eps, learning_rate: expected in (0, 1] and above 0, got "
                f"{self.eps}, {self.learning_rate}"
            )
        for name in ("n_frequencies", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")


def make_low_frequency_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: LowFrequencyConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Find a smooth pattern that raises the targets' probability on a clean classifier.

    Source: Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective"
    (ICCV 2021), who look for a perturbation that stays effective behind a low-pass filter. Ours is
    smooth by construction, a sum of the lowest frequencies of the cosine transform scaled to `eps`
    in L-infinity, and is optimised on one clean classifier, not in a loop with the poisoned one.
    """
    clean = require_helper(helper, "lf")
    targets = rule.targets(labels, num_classes)
    usable = (targets != NOT_COUNTED).nonzero()[:, 0].cpu()
    channels, height, width = images.shape[1:]
    rows = cosine_basis(config.n_frequencies, height).to(images)
    columns = cosine_basis(config.n_frequencies, width).to(images)
    start = torch.randn(channels, len(rows), len(columns), generator=generator)
    coefficients = start.to(images).requires_grad_(True)

    def pattern() -> Tensor:
        # Under bfloat16 a sum of cosines is not smooth, and what is written must be float32.
        with torch.autocast(images.device.type, enabled=False):
            smooth = rows.T @ coefficients @ columns  # (C, H, W)
            return config.eps * smooth / smooth.abs().max()

    optimizer = torch.optim.Adam([coefficients], lr=config.learning_rate)
    for step in range(config.n_steps):
        yield Progress("LF: looking for a smooth pattern", step, config.n_steps)
        picks = torch.randint(len(usable), (config.batch_size,), generator=generator)
        chosen = usable[picks].to(images.device)
        logits = clean((images[chosen] + pattern()).clamp(0, 1))
        loss = functional.cross_entropy(logits.float(), targets[chosen])
        (coefficients.grad,) = torch.autograd.grad(loss, [coefficients])
        optimizer.step()
    delta = pattern().detach().cpu()
    return Trigger(transform=Additive(delta=delta), rule=rule, source="lf")


def cosine_basis(n: int, side: int) -> Tensor:
    """Return (n, side): the lowest frequencies of the cosine transform (DCT-II), the mean first."""
    frequency, place = torch.arange(min(n, side)), torch.arange(side)
    return torch.cos(pi * frequency[:, None] * (place + 0.5) / side)
