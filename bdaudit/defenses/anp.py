"""Adversarial neuron pruning: remove the neurons whose perturbation does the most harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.augmentation import shift_and_flip
from bdaudit.defenses.pruning import batch_norms, normalising_by_batch, prune_lowest, step_masks
from bdaudit.defenses.tuning import (
    check_images,
    device_of,
    seeded_globals,
    trainable_copy,
)
from bdaudit.errors import ConfigError, NumericsError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.perturbation import NeuronNoise, Neurons

__all__ = ["AnpConfig", "prune_perturbed_neurons"]

_STEPS_A_REPORT = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class AnpConfig:
    """Settings of `prune_perturbed_neurons`.

    Attributes:
        eps: Largest relative perturbation of a neuron's weight and bias.
        alpha: Weight of the loss without perturbation, in [0, 1]; the rest is that with it.
        n_steps: Steps of the masks.
        learning_rate: Of SGD on the masks.
        momentum: Of SGD on the masks.
        batch_size: Images in a mini-batch.
        threshold: Neurons with a mask of this or less are pruned, the lowest first.
        max_acc_loss: Pruning stops before the accuracy on the given images has fallen by more
            than this share.
        max_shift: Augmentation: largest shift as a share of the image's shorter side.
        flip: Augmentation: flip images left to right.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.4
    alpha: float = 0.2
    n_steps: int = 300
    learning_rate: float = 0.2
    momentum: float = 0.9
    batch_size: int = 128
    threshold: float = 0.7
    max_acc_loss: float = 0.05
    max_shift: float = 0.08
    flip: bool = True

    def __post_init__(self) -> None:
        if self.n_steps < 1 or self.batch_size < 2:
            raise ConfigError("n_steps, batch_size: expected 1 and 2 or more")
        for name in ("eps", "learning_rate"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        for name in ("alpha", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected in [0, 1], got {getattr(self, name)}")
        for name in ("momentum", "max_acc_loss", "max_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), got {getattr(self, name)}")


def prune_perturbed_neurons(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: AnpConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Prune a copy of `classifier` where perturbed neurons do the most harm on clean images.

    A neuron is a channel of a batch-norm layer with weight w and bias b. A mask m in [0, 1] on each
    is learned to lower alpha L(m w, b) + (1 - alpha) max L((m + d) w, (1 + x) b), the worst d and x
    within eps being found by one sign step from a random place. Backdoored networks answer with the
    target when their neurons are perturbed, so the masks of neurons that carry the backdoor fall.
    Those at or below the threshold are pruned (w = 0), the lowest first. Nothing is fine-tuned.

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
        NumericsError: The loss was not finite.

    Source: Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021:
    eps 0.4, alpha 0.2, 2,000 steps of SGD at 0.2 with momentum 0.9 and mini-batches of 128 on 1 %
    of the training set, threshold 0.2 on CIFAR-10. Their code does not bring the worst d and x back
    within eps; here they are. Our default is fewer steps, a higher threshold (in narrow networks
    the backdoor is spread over neurons whose masks fall less), and a bound on the accuracy lost,
    which ends the pruning.
    """
    check_images(images, labels)
    title = "adversarial neuron pruning"
    pruned = trainable_copy(classifier).requires_grad_(False)
    neurons, norms = batch_norms(pruned, title)
    device = device_of(pruned)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    masks = yield from _learn_masks(neurons, norms, images, labels, config, generator, title)
    pruned.eval()
    prune_lowest(
        pruned,
        [neurons.shaken[f"{name}.weight"] for name in norms],
        masks,
        images,
        labels,
        threshold=config.threshold,
        max_acc_loss=config.max_acc_loss,
    )
    yield Progress(title, config.n_steps, config.n_steps)
    return pruned


def _learn_masks(
    neurons: Neurons,
    norms: list[str],
    images: Tensor,
    labels: Tensor,
    config: AnpConfig,
    generator: torch.Generator,
    title: str,
) -> Steps[list[Tensor]]:
    """Return the mask (channels,) of each layer."""
    masks = [torch.ones_like(neurons.shaken[f"{name}.weight"]).requires_grad_() for name in norms]
    optimizer = torch.optim.SGD(masks, lr=config.learning_rate, momentum=config.momentum)

    def loss_of(noise: NeuronNoise, batch: Tensor, answers: Tensor) -> Tensor:
        # (m + d) w is w under the relative noise m - 1 + d.
        factors = {f"{name}.weight": mask - 1 for name, mask in zip(norms, masks, strict=True)}
        changed = {name: value + factors.get(name, 0.0) for name, value in noise.items()}
        return functional.cross_entropy(neurons.answer(changed, batch).float(), answers)

    for step, chosen in enumerate(_batches(len(labels), config, generator)):
        if step % _STEPS_A_REPORT == 0:
            yield Progress(title, step, config.n_steps)
        batch = shift_and_flip(
            images[chosen], max_shift=config.max_shift, flip=config.flip, generator=generator
        )
        answers = labels[chosen]
        with normalising_by_batch(neurons.classifier), seeded_globals(images.device, generator):
            noise = neurons.random(config.eps, generator)
            leaves = {name: value.requires_grad_() for name, value in noise.items()}
            harm = loss_of(leaves, batch, answers)
            ascent = torch.autograd.grad(harm, list(leaves.values()))
            worst = {
                name: (value.detach() + config.eps * slope.sign()).clamp(-config.eps, config.eps)
                for (name, value), slope in zip(leaves.items(), ascent, strict=True)
            }
            loss = (1 - config.alpha) * loss_of(worst, batch, answers)
            loss = loss + config.alpha * loss_of(neurons.still(), batch, answers)
            step_masks(optimizer, masks, loss)
    if not all(bool(mask.isfinite().all()) for mask in masks):
        raise NumericsError(f"{title}: the loss was not finite; lower eps ({config.eps:g})")
    return [mask.detach() for mask in masks]


def _batches(n_images: int, config: AnpConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Deal out the images `n_steps` times, every one as often as any other but for one."""
    n_batches = max(1, ceil(n_images / config.batch_size))
    for step in range(config.n_steps):
        if step % n_batches == 0:
            dealt = torch.randperm(n_images, generator=generator).tensor_split(n_batches)
        yield dealt[step % n_batches]
