"""Feature-shift tuning: a fresh classifier head, kept from turning back to the old one."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.layers import logit_head
from bdaudit.defenses.tuning import TuningConfig, trainable_copy, tune
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps

__all__ = ["FstConfig", "feature_shift_tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FstConfig:
    """Settings of `feature_shift_tune`.

    Attributes:
        alpha: Weight of the inner product between the new head and the old one.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    alpha: float = 0.2
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        if not (isfinite(self.alpha) and self.alpha >= 0):
            raise ConfigError(f"alpha: expected a finite number of at least 0, got {self.alpha}")


def feature_shift_tune(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: FstConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Fine-tune a copy of `classifier` from a fresh head that must differ from the old one.

    The loss is cross-entropy + alpha <w, w0>, where w0 is the head's weight before and w the
    present one, whose length is put back to that of w0 after every step. The features have to
    shift to serve the new head, and the path from trigger to target is cut.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The logits do not come from a linear layer.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Min et al., "Towards Stable Backdoor Purification through Feature Shift Tuning",
    NeurIPS 2023: SGD at 0.01 for 10 epochs on 2 % of the training set, alpha 0.2 on CIFAR-10, 0.1
    on GTSRB, 0.001 with 100 classes or more. We default to fewer epochs at a larger rate, on a
    one-cycle schedule.
    """
    tuned = trainable_copy(classifier)
    head = logit_head(tuned, images, "feature-shift tuning")
    original = head.weight.detach().clone()
    _reinitialise(head, generator)
    length = torch.linalg.vector_norm(original)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(batch), answers)
        loss = loss + config.alpha * (head.weight * original).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def keep_length() -> None:
        # Without it the inner product could fall without bound as the weights grow.
        with torch.no_grad():
            present = torch.linalg.vector_norm(head.weight)
            head.weight *= length / present.clamp_min(torch.finfo(present.dtype).tiny)

    yield from tune(
        tuned,
        images,
        labels,
        config=config.tuning,
        generator=generator,
        title="feature-shift tuning",
        gradients=gradients,
        after_step=keep_length,
        replayed=True,
    )
    return tuned


def _reinitialise(head: nn.Linear, generator: torch.Generator) -> None:
    """Draw weight and bias as torch's linear layer does, from a CPU generator."""
    bound = 1 / sqrt(head.in_features)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            if parameter is not None:
                fresh = (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound
                parameter.copy_(fresh)
