"""MM-BM: learn upper bounds on activations, as low as clean images allow. No weight changes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.layers import hidden_layers
from bdaudit.defenses.pruning import accuracy_on
from bdaudit.defenses.tuning import check_images, device_of, trainable_copy
from bdaudit.errors import ConfigError, DataError, NumericsError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.models import Clampable, OutputClamp, clamp_output
from bdaudit.scoring import evaluating, predict

__all__ = ["MmBmConfig", "bound_activations"]

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MmBmConfig:
    """Settings of `bound_activations`.

    Attributes:
        start: Bound of every channel before the first step.
        learning_rate: Of Adam on the bounds.
        n_epochs: Passes over the images.
        images_per_class: Most images of a class that are used, of those answered rightly.
        batch_size: Most images in a mini-batch.
        norm_weight: Weight c of the bounds' lengths at first, beside the change of the logits.
        norm_factor: By what c is multiplied after an epoch while accuracy lasts, and divided where
            it does not.
        max_acc_loss: Share of those images that may be lost.

    Raises:
        ConfigError: A setting is out of range.
    """

    start: float = 8.0
    learning_rate: float = 0.1
    n_epochs: int = 50
    images_per_class: int = 50
    batch_size: int = 200
    norm_weight: float = 0.5
    norm_factor: float = 1.2
    max_acc_loss: float = 0.05

    def __post_init__(self) -> None:
        for name in ("n_epochs", "images_per_class", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("start", "learning_rate", "norm_weight"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        if not (isfinite(self.norm_factor) and self.norm_factor >= 1):
            raise ConfigError(
                f"norm_factor: expected a finite number of at least 1, got {self.norm_factor}"
            )
        if not 0 <= self.max_acc_loss < 1:
            raise ConfigError(f"max_acc_loss: expected in [0, 1), got {self.max_acc_loss}")


def bound_activations(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: MmBmConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Bound the activations of a copy of `classifier` from above, as low as clean images allow.

    A trigger has to overrule all features of an image, and does so by activations larger than any
    that clean images cause. One bound a channel is learned to lower the mean squared change of the
    logits of clean images plus c times the lengths of the bounds, layer by layer. c goes up while
    the images are answered rightly, and down when they are not. The weights stay what they were.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        A copy with bounds (`models.clamps`), in eval mode, no parameter requiring a gradient: of
        all epochs the one with the least bounds among those that kept enough images right.

    Raises:
        ModelError: The network has no layers to bound.
        DataError: Images and labels do not fit each other, or no image is answered rightly.
        NumericsError: No epoch kept enough images right.

    Source: Wang, Xiang, Miller and Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks
    with Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic", S&P 2024, and their
    code: 50 clean images a class of those answered rightly, bounds from 8, Adam at 0.1 for 50
    epochs in mini-batches of 200, c from 0.5 and times or over 1.2 every ten epochs by whether the
    accuracy is 0.95 or more; bounds on the outputs of the stem and of the first two stages of a
    ResNet-18. We bound the outputs of all batch norms, which before a ReLU is the same as bounding
    behind it (a bound is never below 0), and without batch norm those of all hidden layers, as in a
    transformer; change c after every epoch; and return the lowest bounds that kept the accuracy
    instead of the last.
    """
    check_images(images, labels)
    title = "MM-BM"
    bounded = trainable_copy(classifier).requires_grad_(False).eval()
    device = device_of(bounded)
    images, labels = _answered_rightly(bounded, images, labels, config, generator)
    images = images.to(device=device, dtype=torch.float32)
    with evaluating(bounded), torch.no_grad():
        logits = torch.cat([bounded(part).float() for part in torch.split(images, _BATCH)])
    clamps = [_clamp(layer, config.start) for layer in layers_to_bound(bounded)]
    bounds = [clamp.at_most for clamp in clamps]
    optimizer = torch.optim.Adam(bounds, lr=config.learning_rate)
    norm_weight, best, least = config.norm_weight, list[Tensor](), float("inf")
    for epoch in range(config.n_epochs + 1):
        right = accuracy_on(bounded, images, labels) >= 1 - config.max_acc_loss
        size = float(_lengths(bounds).detach())
        if right and size < least:
            best, least = [bound.detach().clone() for bound in bounds], size
        if epoch == config.n_epochs:
            break
        if epoch > 0:
            norm_weight *= config.norm_factor if right else 1 / config.norm_factor
        yield Progress(title, epoch, config.n_epochs)
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order.tensor_split(ceil(len(labels) / config.batch_size)):
            change = functional.mse_loss(bounded(images[chosen]).float(), logits[chosen])
            loss = change + norm_weight * _lengths(bounds)
            for bound, slope in zip(bounds, torch.autograd.grad(loss, bounds), strict=True):
                bound.grad = slope
            optimizer.step()
            with torch.no_grad():
                for bound in bounds:
                    bound.clamp_(min=0.0)
    if not best:
        raise NumericsError(
            f"{title}: no bounds kept {1 - config.max_acc_loss:g} of the images right; raise start "
            f"({config.start:g}) above the network's activations"
        )
    with torch.no_grad():
        for bound, value in zip(bounds, best, strict=True):
            bound.copy_(value)
            bound.grad = None
    yield Progress(title, config.n_epochs, config.n_epochs)
    return bounded.requires_grad_(False)


def layers_to_bound(classifier: nn.Module) -> list[Clampable]:
    """Return all batch norms, or without any the hidden layers.

    Raises:
        ModelError: There is neither.
    """
    norms = nn.modules.batchnorm._BatchNorm
    found: list[Clampable] = [part for part in classifier.modules() if isinstance(part, norms)]
    return found or [*hidden_layers(classifier)]


def _clamp(layer: Clampable, start: float) -> OutputClamp:
    """Bound a layer at `start`, or where it is bounded lower already there."""
    earlier = getattr(layer, "clamp", None)
    if isinstance(earlier, OutputClamp):
        return clamp_output(layer, earlier.at_most.detach().clamp(max=start))
    return clamp_output(layer, start)


def _lengths(bounds: list[nn.Parameter]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(bound) for bound in bounds]).sum()


def _answered_rightly(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: MmBmConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Choose images that the classifier answers by their labels, as many of each class at most."""
    answers = predict(classifier, images, batch_size=_BATCH, device=device_of(classifier))
    truth = labels.cpu()
    order = torch.randperm(len(truth), generator=generator)
    order = order[(answers == truth)[order]]
    chosen = torch.cat(
        [
            order[truth[order] == label][: config.images_per_class]
            for label in range(int(truth.max()) + 1)
        ]
    )
    if not len(chosen):
        raise DataError("MM-BM: expected images that the model answers rightly, found none")
    return images[chosen.to(images.device)], truth[chosen]
