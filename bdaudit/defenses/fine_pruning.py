"""Fine-pruning: remove the channels that clean images leave asleep, then fine-tune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor, nn

from bdaudit.defenses.layers import Weighted, last_feature_layer
from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import TuningConfig, device_of, trainable_copy
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.scoring import evaluating, predict

__all__ = ["FinePruningConfig", "fine_prune"]

_BATCH = 128
_PRUNED_AT_A_TIME = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FinePruningConfig:
    """Settings of `fine_prune`.

    Attributes:
        max_acc_loss: Pruning stops before the accuracy on the given images has fallen by more
            than this share.
        tuning: How it trains afterwards.

    Raises:
        ConfigError: A setting is out of range.
    """

    max_acc_loss: float = 0.04
    tuning: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_acc_loss < 1:
            raise ConfigError(f"max_acc_loss: expected in [0, 1), got {self.max_acc_loss}")


def fine_prune(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: FinePruningConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Prune a copy of `classifier` in its last convolution and fine-tune what is left.

    Channels go in order of their mean activation on clean images, least active first, a twentieth
    of them at a time, until one more would cost too much accuracy. The rows of pruned channels are
    zero and stay zero while the rest is fine-tuned.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The pruned and tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The network has no layer to prune.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Liu et al., "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
    Networks", RAID 2018. They stop at an accuracy loss of 4 % and measure activations after the
    ReLU; so do we, by taking the positive part where the layer itself has none. A network without
    convolutions past its stem is pruned in its last hidden linear layer.
    """
    title = "fine-pruning"
    tuned = trainable_copy(classifier)
    layer = last_feature_layer(tuned)
    yield Progress(f"{title}: pruning", 0, 1)
    with evaluating(tuned):
        pruned = _prune(tuned, layer, images, labels, config.max_acc_loss)
    with _kept_at_zero(layer, pruned):
        yield from lessons_of(tuned, images, labels).tune(
            tuned, config=config.tuning, generator=generator, title=title
        )
    return tuned


def _prune(
    model: nn.Module, layer: Weighted, images: Tensor, labels: Tensor, max_acc_loss: float
) -> Tensor:
    """Zero the rows of the least active channels, and return their indices."""
    order = mean_activation(model, layer, images).argsort(stable=True)
    at_a_time = ceil(_PRUNED_AT_A_TIME * len(order))
    least = _accuracy(model, images, labels) - max_acc_loss
    n_pruned = 0
    while n_pruned + at_a_time < len(order):
        chosen = order[n_pruned : n_pruned + at_a_time]
        before = [parameter[chosen].clone() for parameter in _rows(layer)]
        with torch.no_grad():
            for parameter in _rows(layer):
                parameter[chosen] = 0.0
        if _accuracy(model, images, labels) < least:
            with torch.no_grad():
                for parameter, values in zip(_rows(layer), before, strict=True):
                    parameter[chosen] = values
            break
        n_pruned += at_a_time
    return order[:n_pruned]


def mean_activation(model: nn.Module, layer: Weighted, images: Tensor) -> Tensor:
    """Return every channel's mean positive output (channels,) over images and places."""
    sums: list[Tensor] = []

    def add(_module: nn.Module, _inputs: object, outputs: Tensor) -> None:
        channels_last = outputs.movedim(1, -1) if isinstance(layer, nn.Conv2d) else outputs
        sums.append(channels_last.clamp_min(0.0).flatten(0, -2).double().mean(0) * len(outputs))

    handle = layer.register_forward_hook(add)
    try:
        predict(model, images, batch_size=_BATCH, device=device_of(model))
    finally:
        handle.remove()
    return torch.stack(sums).sum(0) / len(images)


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = predict(model, images, batch_size=_BATCH, device=device_of(model))
    return float((predicted == labels.cpu()).double().mean())


def _rows(layer: Weighted) -> list[Tensor]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


@contextmanager
def _kept_at_zero(layer: Weighted, pruned: Tensor) -> Iterator[None]:
    """Zero the gradients of pruned rows: without one, and at zero, no step moves them."""

    def mask(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, pruned, 0.0)

    handles = [parameter.register_hook(mask) for parameter in _rows(layer)]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
