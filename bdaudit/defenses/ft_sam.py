"""FT-SAM: fine-tuning toward flat minima, which moves the weights that a backdoor leans on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn

from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import (
    TuningConfig,
    statistics_held,
    trainable_copy,
    weights_moved,
)
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps

__all__ = ["FtSamConfig", "ft_sam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FtSamConfig:
    """Settings of `ft_sam`.

    Attributes:
        rho: Radius of the perturbation of the weights, relative to their size; 0 is plain
            fine-tuning at twice the cost.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    rho: float = 0.5
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        if not (isfinite(self.rho) and self.rho >= 0):
            raise ConfigError(f"rho: expected a finite number of at least 0, got {self.rho}")


def ft_sam(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: FtSamConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Fine-tune a copy of `classifier` by sharpness-aware minimisation.

    Every step takes its gradient at the worst nearby weights: for weights w with gradient g and
    T = |w|, at w + rho T^2 g / ||T g||, the norm taken over all parameters. Weights that are large
    are perturbed most, and those carry the backdoor.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021; the scaling by T from Kwon et al., "ASAM", ICML 2021; as a defence Zhu et al.,
    "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023,
    whose benchmark settings for CIFAR-10 and PreAct-ResNet-18 are rho 2, learning rate 0.01, 100
    epochs. We take batch-norm statistics from the unperturbed weights only, train shorter and at a
    larger rate, and default to a smaller rho: a few hundred images do not recover from 2.
    """
    tuned = trainable_copy(classifier)
    lessons = lessons_of(tuned, images, labels)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        loss = lessons.backpropagate(model, batch, answers)
        with at_worst_neighbour(model, config.rho), statistics_held(model):
            model.zero_grad(set_to_none=True)
            lessons.backpropagate(model, batch, answers)
        return loss

    yield from lessons.tune(
        tuned,
        config=config.tuning,
        generator=generator,
        title="FT-SAM",
        gradients=gradients,
        replayed=True,
    )
    return tuned


@contextmanager
def at_worst_neighbour(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights up the loss along their present gradients, and back again."""
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    with torch.no_grad():
        scaled = [parameter.abs() * _gradient(parameter) for parameter in moved]  # T g
        length = torch.stack([torch.linalg.vector_norm(value) for value in scaled]).norm()
        step = rho / length.clamp_min(torch.finfo(length.dtype).tiny)
        moves = [
            (parameter, step * parameter.abs() * value)
            for parameter, value in zip(moved, scaled, strict=True)
        ]
    with weights_moved(moves):
        yield


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
