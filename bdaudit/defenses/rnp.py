"""Reconstructive neuron pruning: unlearn all weights, recover by masks, prune what they leave."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.forgetting import forget, negated_cross_entropy
from bdaudit.defenses.pruning import batch_norms, normalising_by_batch, prune_lowest, step_masks
from bdaudit.defenses.tuning import check_images, device_of, seeded_globals, trainable_copy
from bdaudit.errors import ConfigError, NumericsError
from bdaudit.foundation.progress import Progress, Steps

__all__ = ["RnpConfig", "prune_unrecovered_neurons"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RnpConfig:
    """Settings of `prune_unrecovered_neurons`.

    Attributes:
        n_images: Most of the given images that are used to unlearn and to recover.
        unlearning_rate: Learning rate of the unlearning.
        max_unlearning_epochs: Passes over the images after which unlearning ends at the latest; it
            ends as soon as the accuracy on them is that of always guessing the commonest class.
        recovery_rate: Learning rate of the masks.
        recovery_epochs: Passes over the images while the masks are learned.
        alpha: Weight of the loss of the masks, above 0: beside the rate it only scales.
        batch_size: Most images in a mini-batch.
        threshold: Neurons with a mask of this or less may be pruned, the lowest first.
        max_acc_loss: Pruning stops before the accuracy on the given images has fallen by more
            than this share.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_images: int = 500
    unlearning_rate: float = 0.01
    max_unlearning_epochs: int = 20
    recovery_rate: float = 0.02
    recovery_epochs: int = 20
    alpha: float = 0.2
    batch_size: int = 128
    threshold: float = 0.7
    max_acc_loss: float = 0.05

    def __post_init__(self) -> None:
        leasts = {"n_images": 2, "max_unlearning_epochs": 1, "recovery_epochs": 1, "batch_size": 2}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        for name in ("unlearning_rate", "recovery_rate", "alpha"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold: expected in [0, 1], got {self.threshold}")
        if not 0 <= self.max_acc_loss < 1:
            raise ConfigError(f"max_acc_loss: expected in [0, 1), got {self.max_acc_loss}")


def prune_unrecovered_neurons(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: RnpConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Prune a copy of `classifier` where neurons are of no use to recovering the task.

    Another copy first unlearns the clean images, all weights together. Then only a mask in [0, 1]
    on the scale of each batch-norm channel is learned, so that the unlearned copy gets the task
    back. What the clean task needs is switched on again; the masks of neurons that served the
    backdoor fall. In the original those at or below the threshold are pruned (scale 0), the lowest
    first. Nothing is fine-tuned.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The pruned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        ModelError: The network has no batch norm with weights.
        DataError: Images and labels do not fit each other.
        NumericsError: Unlearning or recovery diverged.

    Source: Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023, and their
    code: 500 clean images; unlearning by SGD at 0.01 with momentum 0.9, decay 5e-4 and gradients no
    longer than 20, until the accuracy is at most 0.20 or 20 epochs are over; masks by SGD at 0.2
    for 20 epochs with the loss weighted 0.2; then thresholds on the masks are tried up to 0.9 and
    the choice is left open. We unlearn down to a guess; use no augmentation; leave the running
    statistics alone while masks are learned; learn them at 0.02, since at 0.2 most masks of a
    narrow network end at 0, where they have no order; and prune below a threshold of 0.7 as long
    as the given images, all of them, bear it.
    """
    check_images(images, labels)
    title = "RNP"
    pruned = trainable_copy(classifier).requires_grad_(False)
    kept, names = batch_norms(pruned, "reconstructive neuron pruning")
    unlearned = trainable_copy(classifier)
    used = torch.randperm(len(labels), generator=generator)[: config.n_images]
    yield from forget(
        unlearned,
        images[used],
        labels[used],
        loss=negated_cross_entropy,
        learning_rate=config.unlearning_rate,
        batch_size=config.batch_size,
        max_epochs=config.max_unlearning_epochs,
        generator=generator,
        title=f"{title}: unlearning",
        rate_setting="unlearning_rate",
        weight_decay=_DECAY,
        max_norm=_LONGEST_GRADIENT,
    )
    device = device_of(pruned)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    masks = yield from _recover(
        unlearned, images[used], labels[used], config, generator, f"{title}: recovery"
    )
    pruned.eval()
    prune_lowest(
        pruned,
        [kept.shaken[f"{name}.weight"] for name in names],
        masks,
        images,
        labels,
        threshold=config.threshold,
        max_acc_loss=config.max_acc_loss,
    )
    return pruned


_DECAY = 5e-4
_LONGEST_GRADIENT = 20.0


def _recover(
    unlearned: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: RnpConfig,
    generator: torch.Generator,
    title: str,
) -> Steps[list[Tensor]]:
    """Return the mask (channels,) of each layer with which the task comes back."""
    unlearned.requires_grad_(False)
    neurons, names = batch_norms(unlearned, "reconstructive neuron pruning")
    weights = [f"{name}.weight" for name in names]
    masks = [torch.ones_like(neurons.shaken[name]).requires_grad_() for name in weights]
    optimizer = torch.optim.SGD(masks, lr=config.recovery_rate, momentum=0.9)
    for epoch in range(config.recovery_epochs):
        yield Progress(title, epoch, config.recovery_epochs)
        order = torch.randperm(len(labels), generator=generator)
        with normalising_by_batch(unlearned), seeded_globals(images.device, generator):
            for chosen in order.tensor_split(ceil(len(labels) / config.batch_size)):
                noise = neurons.still()
                # m w is w under the relative noise m - 1.
                noise |= {name: mask - 1 for name, mask in zip(weights, masks, strict=True)}
                answers = neurons.answer(noise, images[chosen]).float()
                loss = config.alpha * functional.cross_entropy(answers, labels[chosen])
                step_masks(optimizer, masks, loss)
    if not all(bool(mask.isfinite().all()) for mask in masks):
        raise NumericsError(
            f"{title}: the loss was not finite; lower recovery_rate ({config.recovery_rate:g})"
        )
    yield Progress(title, config.recovery_epochs, config.recovery_epochs)
    return [mask.detach() for mask in masks]
