"""Adversarial unlearning (i-BAU): unlearn the worst trigger, and mind how it would answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bdaudit.defenses.tuning import check_images, device_of, trainable_copy
from bdaudit.detection import sparing_marks
from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.progress import Progress, Steps

__all__ = ["IBauConfig", "unlearn_worst_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IBauConfig:
    """Settings of `unlearn_worst_trigger`.

    Attributes:
        n_rounds: Rounds, each with a new trigger.
        n_iterations: Fixed-point iterations of a hypergradient.
        learning_rate: Of Adam on the network.
        batch_size: Most images in a mini-batch.
        stamped_share: Share of a mini-batch that carries the trigger while it is unlearned, in
            (0, 1]; one image at least.
        trigger_rate: Learning rate of the trigger's gradient descent.
        trigger_weight: Weight of the trigger's squared length in its loss.
        radius: Largest root mean square of the trigger's pixels, in pixel units.
        map_rate: Step of the fixed-point map.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_rounds: int = 5
    n_iterations: int = 5
    learning_rate: float = 1e-3
    batch_size: int = 100
    stamped_share: float = 0.2
    trigger_rate: float = 10.0
    trigger_weight: float = 1e-3
    radius: float = 0.1
    map_rate: float = 0.1

    def __post_init__(self) -> None:
        if min(self.n_rounds, self.n_iterations, self.batch_size) < 1:
            raise ConfigError("n_rounds, n_iterations, batch_size: expected 1 or more")
        for name in ("learning_rate", "trigger_rate", "radius", "map_rate"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        if not (isfinite(self.trigger_weight) and self.trigger_weight >= 0):
            raise ConfigError(f"trigger_weight: expected 0 or more, got {self.trigger_weight}")
        if not 0 < self.stamped_share <= 1:
            raise ConfigError(f"stamped_share: expected in (0, 1], got {self.stamped_share}")


def unlearn_worst_trigger(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: IBauConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Train a copy of `classifier` to answer rightly under the universal trigger that hurts most.

    The minimax min_w max_d L(w, x + d) is solved in rounds. In each, d descends from 0 over one
    pass of the images on -L + trigger_weight |d|^2, and is brought into its ball. Then each
    mini-batch, a share of it stamped, gives w one step of Adam along the hypergradient: the loss's
    own gradient, and its gradient through d, which would answer to w. The latter needs
    (I - dF/dd)^-1, F being one descent step of d, and takes a few fixed-point iterations for it.

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
        ModelError: The network cannot be differentiated twice.
        NumericsError: Training diverged.

    Source: Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR
    2022; fixed-point hypergradients from Grazzi et al., ICML 2020. Theirs for CIFAR-10: 5 rounds, 5
    iterations, Adam at 0.001, mini-batches of 100, of which one image is stamped, 5,000 images. As
    in their code batch norm stays in eval mode, and F's loss is taken on one fixed mini-batch. We
    stamp a fifth of a mini-batch; bound the trigger, as the paper does and the code does not; clamp
    stamped images to [0, 1], which the gradient does not see, where theirs leave the range of
    pixels; and deal the images anew in every round.
    """
    check_images(images, labels)
    title = "adversarial unlearning (i-BAU)"
    tuned = trainable_copy(classifier).eval()
    device = device_of(tuned)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    weights = list(tuned.parameters())
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
    n_batches = max(1, ceil(len(labels) / config.batch_size))
    for done in range(config.n_rounds):
        order = torch.randperm(len(labels), generator=generator)
        batches = [(images[part], labels[part]) for part in order.tensor_split(n_batches)]
        # Only the plain form of attention can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            trigger = _worst_trigger(tuned, batches, config)
        for number, (batch, answers) in enumerate(batches):
            if number % 10 == 0:
                yield Progress(title, done + number / n_batches, config.n_rounds)
            n_stamped = max(1, int(len(answers) * config.stamped_share))
            stamped = torch.randperm(len(answers), generator=generator)[:n_stamped]
            with sdpa_kernel(SDPBackend.MATH), _differentiated_twice(title):
                slopes = hypergradient(
                    tuned, weights, trigger, batches[0], (batch, answers), stamped, config
                )
            for weight, slope in zip(weights, slopes, strict=True):
                weight.grad = slope
            optimizer.step()
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise NumericsError(
                f"{title}: weights were not finite after round {done + 1} of {config.n_rounds}; "
                f"lower the learning rate ({config.learning_rate:g})"
            )
    optimizer.zero_grad(set_to_none=True)
    yield Progress(title, config.n_rounds, config.n_rounds)
    return tuned.requires_grad_(False)


@contextmanager
def _differentiated_twice(title: str) -> Iterator[None]:
    """Raise a ModelError where the network has an operation without a second derivative."""
    try:
        yield
    except RuntimeError as error:
        if "double backward" not in str(error):
            raise
        raise ModelError(
            f"{title}: expected a network that can be differentiated twice, and this one cannot "
            f"({error}), such as Faster R-CNN; use another defence"
        ) from error


Batch = tuple[Tensor, Tensor]


def _worst_trigger(classifier: nn.Module, batches: Sequence[Batch], config: IBauConfig) -> Tensor:
    """Return the trigger (1, C, H, W) that takes images furthest from the network's own answers."""
    trigger = torch.zeros_like(batches[0][0][:1])
    for images, _ in batches:
        with torch.no_grad():
            answers = classifier(images).argmax(1)
        leaf = trigger.requires_grad_()
        (slope,) = torch.autograd.grad(
            trigger_loss(classifier, leaf, images, answers, config), leaf
        )
        trigger = (leaf - config.trigger_rate * slope).detach()
    size = trigger.square().mean().sqrt()
    return trigger * (config.radius / size.clamp_min(config.radius))


def trigger_loss(
    classifier: nn.Module, trigger: Tensor, images: Tensor, answers: Tensor, config: IBauConfig
) -> Tensor:
    loss = functional.cross_entropy(classifier(add_trigger(images, trigger)).float(), answers)
    return config.trigger_weight * trigger.square().sum() - loss


def hypergradient(
    classifier: nn.Module,
    weights: Sequence[nn.Parameter],
    trigger: Tensor,
    fixed: Batch,
    batch: Batch,
    stamped: Tensor,
    config: IBauConfig,
) -> list[Tensor | None]:
    """Return the gradient of the unlearning loss by the weights, the trigger's answer included.

    Args:
        classifier: The network.
        weights: Its parameters.
        trigger: (1, C, H, W).
        fixed: Images and labels of the trigger's own loss.
        batch: Images and labels of the unlearning loss.
        stamped: Indices of those that carry the trigger.
        config: Settings.
    """
    leaf = trigger.detach().requires_grad_()
    images, answers = batch
    images = images.index_copy(0, stamped.to(images.device), add_trigger(images[stamped], leaf))
    loss = functional.cross_entropy(classifier(images).float(), answers)
    by_trigger, *direct = torch.autograd.grad(loss, [leaf, *weights], allow_unused=True)
    # F: one step of gradient descent on the trigger's loss.
    (slope,) = torch.autograd.grad(
        trigger_loss(classifier, leaf, *fixed, config), leaf, create_graph=True
    )
    mapped = leaf - config.map_rate * slope
    adjoint = by_trigger
    for _ in range(config.n_iterations - 1):
        (carried,) = torch.autograd.grad(mapped, leaf, adjoint, retain_graph=True)
        adjoint = carried + by_trigger
    indirect = torch.autograd.grad(mapped, weights, adjoint, allow_unused=True)
    return [_sum(one, other) for one, other in zip(direct, indirect, strict=True)]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def add_trigger(images: Tensor, trigger: Tensor) -> Tensor:
    """Add the trigger and clamp, without losing the gradient of pixels on the bounds."""
    shifted = images + sparing_marks(trigger, images)
    return shifted + (shifted.clamp(0.0, 1.0) - shifted).detach()
