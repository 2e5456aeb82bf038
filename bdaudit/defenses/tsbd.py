"""TSBD: reset the weights that unlearning the task moves most, then fine-tune warily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn

from bdaudit.defenses.forgetting import forget, negated_cross_entropy
from bdaudit.defenses.layers import hidden_layers
from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import (
    TuningConfig,
    check_images,
    statistics_held,
    trainable_copy,
    weights_moved,
)
from bdaudit.errors import ConfigError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.foundation.progress import Steps

__all__ = ["TsbdConfig", "tsbd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TsbdConfig:
    """Settings of `tsbd`.

    Attributes:
        neuron_share: Share of all neurons, over all layers together, whose weights may be reset.
        weight_share: Share of those neurons' weights that is.
        unlearning_rate: Learning rate of the unlearning.
        unlearning_batch_size: Most images in a mini-batch of it.
        max_unlearning_epochs: Passes over the images after which unlearning ends at the latest; it
            ends as soon as the accuracy on them is that of always guessing the commonest class.
        radius: How far each parameter is moved up the loss along its gradient for the second
            gradient of a step.
        alpha: Weight of that second gradient, beside 1 - alpha for the first; 0 is plain
            fine-tuning at twice the cost.
        tuning: How it trains afterwards.

    Raises:
        ConfigError: A setting is out of range.
    """

    neuron_share: float = 0.15
    weight_share: float = 0.7
    unlearning_rate: float = 1e-3
    unlearning_batch_size: int = field(default=128, metadata=LATER)
    max_unlearning_epochs: int = 20
    radius: float = 0.05
    alpha: float = 0.7
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        for name in ("neuron_share", "weight_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected in (0, 1], got {getattr(self, name)}")
        if not (isfinite(self.unlearning_rate) and self.unlearning_rate > 0):
            raise ConfigError(f"unlearning_rate: expected above 0, got {self.unlearning_rate}")
        for name, least in (("unlearning_batch_size", 2), ("max_unlearning_epochs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not (isfinite(self.radius) and self.radius >= 0):
            raise ConfigError(f"radius: expected a finite number of at least 0, got {self.radius}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha: expected in [0, 1], got {self.alpha}")


def tsbd(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: TsbdConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Reset the weights of a copy of `classifier` that unlearning moves most, and fine-tune it.

    Another copy is made to unlearn the clean images. The neurons whose weights that moves most are
    largely those that unlearning the backdoor would move. Of their weights those that moved most
    are set to zero. Then the gradient's length is kept small while the task is relearned, since
    large gradients bring the backdoor back: each step mixes the gradient at the weights with the
    one a little up the loss.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The network has no layers whose neurons could be ranked.
        DataError: Images and labels do not fit each other.
        NumericsError: Unlearning or training diverged.

    Source: Lin et al., "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning
    Weight Changes and Backdoor Activeness", NeurIPS 2024, and its authors' code: neurons are the
    output channels of all convolutions but shortcuts, unlearning by SGD at 0.0001 in mini-batches
    of 256 until the accuracy is at most 0.10 or 1,000 epochs are over, 0.7 of the weights of the
    first neurons, radius 0.05 for each parameter tensor by itself, alpha 0.7, 20 epochs at 0.01 on
    5 % of the training set. The code tries eleven shares of neurons from 0.01 to 0.9 and leaves
    the choice open; we take 0.15. The penalty on the gradient's length is that of Zhao et al.,
    "Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning", ICML 2022.
    We unlearn at 0.001, which on 2,000 images is at chance after a few epochs where 0.0001 is
    still far from it after 20, in mini-batches of 128; take batch norm's statistics from the
    unmoved weights; and train for fewer epochs at a larger rate that rises and falls, with decay,
    in smaller mini-batches and with augmentation. Their schedule is `neuron_share` to choose,
    `unlearning_rate = 0.0001`, `unlearning_batch_size = 256`, `max_unlearning_epochs = 1000`,
    `tuning.schedule = "constant"`, `tuning.learning_rate = 0.01`, `tuning.n_epochs = 20`,
    `tuning.weight_decay = 0`, `tuning.batch_size = 256`, without shifts and flips. Where there is
    no convolution past the stem, neurons are the rows of the hidden linear layers.
    """
    tuned = yield from with_weights_reset(classifier, images, labels, config, generator)
    lessons = lessons_of(tuned, images, labels)

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        loss = lessons.backpropagate(model, batch, answers)
        with moved_up_the_loss(model, config), statistics_held(model):
            lessons.backpropagate(model, batch, answers)
        return loss

    yield from lessons.tune(
        tuned,
        config=config.tuning,
        generator=generator,
        title="TSBD",
        gradients=gradients,
    )
    return tuned


def with_weights_reset(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TsbdConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Return a copy to be trained in which the weights that unlearning moves most are zero."""
    check_images(images, labels)
    reset = trainable_copy(classifier)
    unlearned = trainable_copy(classifier)
    layers = list(zip(hidden_layers(reset), hidden_layers(unlearned), strict=True))
    yield from forget(
        unlearned,
        images,
        labels,
        loss=negated_cross_entropy,
        learning_rate=config.unlearning_rate,
        batch_size=config.unlearning_batch_size,
        max_epochs=config.max_unlearning_epochs,
        generator=generator,
        title="TSBD: unlearning",
        rate_setting="unlearning_rate",
    )
    with torch.no_grad():
        changes = [(moved.weight - layer.weight).abs().flatten(1) for layer, moved in layers]
        for (layer, _), zero in zip(layers, most_changed(changes, config), strict=True):
            layer.weight[zero.view_as(layer.weight)] = 0.0
    return reset


def most_changed(changes: list[Tensor], config: TsbdConfig) -> list[Tensor]:
    """Mark the weights to reset.

    Args:
        changes: For each layer how much each weight changed, (neurons, weights), at least 0.
        config: Which shares.

    Returns:
        For each layer (neurons, weights), true where the neuron is among the `neuron_share` of all
        with the largest sums, and the weight among the `weight_share` of those neurons' weights
        that changed most. At least one neuron, and one weight.
    """
    sums = torch.cat([change.sum(1) for change in changes])
    n_neurons = max(1, int(config.neuron_share * len(sums)))
    first = torch.zeros_like(sums, dtype=torch.bool)
    first[sums.argsort(descending=True, stable=True)[:n_neurons]] = True
    of_layers = torch.split(first, [len(change) for change in changes])
    # Weights of other neurons come behind all of theirs.
    pool = torch.cat(
        [
            change.where(chosen[:, None], -1.0).flatten()
            for change, chosen in zip(changes, of_layers, strict=True)
        ]
    )
    n_weights = max(1, int(config.weight_share * int((pool >= 0).sum())))
    reset = torch.zeros_like(pool, dtype=torch.bool)
    reset[pool.argsort(descending=True, stable=True)[:n_weights]] = True
    parts = torch.split(reset, [change.numel() for change in changes])
    return [part.view_as(change) for part, change in zip(parts, changes, strict=True)]


@contextmanager
def moved_up_the_loss(model: nn.Module, config: TsbdConfig) -> Iterator[None]:
    """Move the weights up the loss, and mix the gradient that is added there with the present."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    firsts = []
    for parameter in trained:
        assert parameter.grad is not None
        firsts.append(parameter.grad)
        parameter.grad = None
    moves = []
    for parameter, first in zip(trained, firsts, strict=True):
        length = torch.linalg.vector_norm(first).clamp_min(torch.finfo(first.dtype).tiny)
        moves.append((parameter, config.radius * first / length))
    with weights_moved(moves):
        yield
    for parameter, first in zip(trained, firsts, strict=True):
        assert parameter.grad is not None
        parameter.grad = (1 - config.alpha) * first + config.alpha * parameter.grad
