"""BAN fine-tuning: clean images must be answered rightly under adversarial noise on the neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import (
    TuningConfig,
    backpropagate,
    statistics_held,
    trainable_copy,
    tune,
)
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.perturbation import neurons_of

__all__ = ["BanConfig", "ban_finetune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BanConfig:
    """Settings of `ban_finetune`.

    Attributes:
        eps: Largest relative change of a normalisation layer's scale or shift.
        n_steps: Sign steps of the noise in every mini-batch, each of eps / n_steps.
        noise_weight: Weight of the loss under noise, beside 1 for the loss without; 0 is plain
            fine-tuning at a multiple of its cost.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.3
    n_steps: int = 1
    noise_weight: float = 0.5
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        if not (isfinite(self.eps) and self.eps > 0):
            raise ConfigError(f"eps: expected above 0, got {self.eps}")
        if self.n_steps < 1:
            raise ConfigError(f"n_steps: expected 1 or more, got {self.n_steps}")
        if not (isfinite(self.noise_weight) and self.noise_weight >= 0):
            raise ConfigError(
                f"noise_weight: expected a finite number of at least 0, got {self.noise_weight}"
            )


def ban_finetune(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: BanConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Fine-tune a copy of `classifier` with and without adversarial noise on its neurons.

    In every mini-batch noise is drawn on the scales and shifts of the normalisation layers and
    driven up the loss; the step lowers the loss without noise plus a weight times the loss under
    it. The neurons that carry a backdoor are taken to be the most sensitive ones, and a network
    that answers rightly under noise has none that are.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device. It
            has normalisation layers with a scale.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: There is no normalisation layer with a scale.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS
    2024, the fine-tuning of its authors' code: eps 0.3, one step from a random start, 5 % of the
    training set, 25 epochs of SGD at 0.005 and noise weight 0.5 in its instructions (0.01 and 0.2
    in its defaults). Theirs lets the noise leave eps and moves batch norm's running statistics
    under noise; here it is kept within eps, and statistics come from the weights without noise. We
    train for fewer epochs at a larger rate, and shake layer and group norm as well as batch norm.
    """
    tuned = trainable_copy(classifier)
    neurons = neurons_of(tuned)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        noise = neurons.random(config.eps, generator)
        with statistics_held(model):
            for _ in range(config.n_steps):
                noise = neurons.raise_loss(
                    noise, batch, answers, step=config.eps / config.n_steps, eps=config.eps
                )
            shaken = functional.cross_entropy(neurons.answer(noise, batch).float(), answers)
            (config.noise_weight * shaken).backward()  # type: ignore[no-untyped-call]
        return backpropagate(model, batch, answers) + config.noise_weight * shaken.detach()

    yield from tune(
        tuned,
        images,
        labels,
        config=config.tuning,
        generator=generator,
        title="BAN fine-tuning",
        gradients=gradients,
    )
    return tuned
