"""The one training loop behind every defence.

A defence says how the gradient of a mini-batch comes about and what is done after a step;
mini-batches, augmentation, learning rate and the return to a frozen classifier are here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, cos, isfinite, pi
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.augmentation import shift_and_flip
from bdaudit.defenses.momentum import Momentum
from bdaudit.errors import ConfigError, DataError, NumericsError
from bdaudit.foundation.plain_settings import LATER
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.foundation.recording import Replayed
from bdaudit.models import training_order

__all__ = [
    "Augment",
    "Gradients",
    "Schedule",
    "TuningConfig",
    "augmented",
    "backpropagate",
    "check_images",
    "device_of",
    "refuse_cached_autocast",
    "seeded_globals",
    "statistics_held",
    "suited_tuning",
    "trainable_copy",
    "tune",
    "weights_moved",
]

Gradients = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Classifier, images (n, C, H, W) and labels (n,) to the loss; adds to the parameters' `.grad`."""

Augment = Callable[[Tensor, Tensor, "TuningConfig", torch.Generator], tuple[Tensor, Tensor]]
"""A mini-batch of images (n, C, H, W) and labels (n,) to the one that is trained on."""

Schedule = Literal["one-cycle", "constant"]
"""How the learning rate changes from step to step."""

_RATE_FOR_ATTENTION = 0.01  # a peak, as 0.02 is for convolutions
_WORTH_RECORDING = 20  # steps; recording one takes about as long as five
_LEAST_RATE = 0.02  # of the peak: the first step of the warm-up is not a step of length zero


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """Settings of stochastic gradient descent on clean images.

    Attributes:
        learning_rate: Peak of the schedule.
        schedule: "one-cycle" goes up linearly during `warm_up`, then down to about 0 as a cosine;
            "constant" stays at the peak from the first step to the last.
        n_epochs: Passes over the images.
        batch_size: Most images in a mini-batch; an epoch is dealt out evenly.
        momentum: Of SGD.
        weight_decay: Of SGD.
        warm_up: Share of the steps during which the rate rises.
        max_shift: Augmentation: largest shift as a share of the image's shorter side.
        flip: Augmentation: flip images left to right. Switch off where left and right differ in
            meaning, as on traffic signs and digits.

    Raises:
        ConfigError: A setting is out of range.
    """

    learning_rate: float = 0.02
    schedule: Schedule = field(default="one-cycle", metadata=LATER)
    n_epochs: int = 5
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.3
    max_shift: float = 0.08
    flip: bool = True

    def __post_init__(self) -> None:
        for name, least in (("n_epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if self.schedule not in get_args(Schedule):
            raise ConfigError(
                f"schedule: expected one of {', '.join(get_args(Schedule))}, got {self.schedule!r}"
            )
        for name in ("momentum", "weight_decay", "warm_up", "max_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), got {getattr(self, name)}")

    def rate_at(self, done: float) -> float:
        """Return the learning rate after a share `done` in [0, 1) of all steps."""
        if self.schedule == "constant":
            return self.learning_rate
        if done < self.warm_up:
            scale = done / self.warm_up
        else:
            scale = 0.5 * (1 + cos(pi * (done - self.warm_up) / (1 - self.warm_up)))
        return self.learning_rate * max(scale, _LEAST_RATE)


def suited_tuning(classifier: nn.Module) -> TuningConfig:
    """Return the defaults for a network of this kind: gentler where it is built of attention.

    A small vision transformer forgets its task at the peak that suits convolutions
    (docs/transfer.md). Attention is `nn.MultiheadAttention` or a module whose class name ends in
    "Attention", as timm's do; a CLIP's ResNet, which only pools by attention, counts as
    convolutional.
    """
    if any(
        isinstance(part, nn.MultiheadAttention) or type(part).__name__.endswith("Attention")
        for part in classifier.modules()
    ):
        return TuningConfig(learning_rate=_RATE_FOR_ATTENTION)
    return TuningConfig()


def trainable_copy(classifier: nn.Module) -> nn.Module:
    """Copy a classifier, frozen or not, and let every parameter of the copy be trained.

    Raises:
        ConfigError: It would be trained inside an autocast that caches its casts.
    """
    device = device_of(classifier)
    refuse_cached_autocast(device.type)
    copied = copy.deepcopy(classifier).requires_grad_(True)
    if training_order(copied, device) is torch.contiguous_format:
        copied = copied.to(memory_format=torch.contiguous_format)  # as it came may be unsafe
    return copied


def refuse_cached_autocast(device_type: str) -> None:
    """Refuse to train inside an autocast that caches its casts.

    Until that context ends, training would go on with casts of the weights from before a step.

    Raises:
        ConfigError: Such a context is entered.
    """
    if torch.is_autocast_enabled(device_type) and torch.is_autocast_cache_enabled():
        raise ConfigError(
            "training inside torch.autocast: its cache keeps weights as they were before a step; "
            "enter it with cache_enabled=False"
        )


def device_of(classifier: nn.Module) -> torch.device:
    """Return where the classifier's parameters are."""
    return next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))


def backpropagate(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Add the gradient of the mean cross-entropy, and return that."""
    loss = functional.cross_entropy(classifier(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def augmented(
    images: Tensor, labels: Tensor, config: TuningConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shift and flip a mini-batch as its settings say."""
    changed = shift_and_flip(
        images, max_shift=config.max_shift, flip=config.flip, generator=generator
    )
    return changed, labels


def tune(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: TuningConfig,
    generator: torch.Generator,
    title: str,
    gradients: Gradients = backpropagate,
    augment: Augment = augmented,
    after_step: Callable[[], None] | None = None,
    watch: Callable[[Tensor], None] | None = None,
    replayed: bool = False,
) -> Steps[None]:
    """Train `classifier` in place with SGD, and leave it in eval mode without gradients.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K), on any device; parameters that
            require a gradient are trained.
        images: (N, C, H, W) in [0, 1]; left as they are.
        labels: (N,) int64.
        config: Settings.
        generator: Seeded CPU generator, the only source of randomness: dropout is seeded from it,
            and torch's global generators are left as they were.
        title: What `Progress` calls the step.
        gradients: How a mini-batch's gradient comes about.
        augment: How it is changed before.
        after_step: Called after every step.
        watch: Told of the loss () of every step; what it raises ends the training.
        replayed: Whether a step may be replayed as a CUDA graph on a card: `gradients` and
            `after_step` wait for nothing, draw nothing, and read nothing that changes but the
            classifier and the mini-batch.

    Yields:
        One `Progress` an epoch.

    Raises:
        DataError: Images and labels do not fit each other, or there are fewer than two.
        NumericsError: The loss of an epoch was not finite.
    """
    check_images(images, labels)
    device = device_of(classifier)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    descent = Momentum(
        (parameter for parameter in classifier.parameters() if parameter.requires_grad),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    n_batches = max(1, ceil(len(labels) / config.batch_size))
    n_steps = config.n_epochs * n_batches
    rates: Sequence[float] | Tensor = [config.rate_at(step / n_steps) for step in range(n_steps)]
    latest, total = torch.zeros((), device=device), torch.zeros((), device=device)

    def take(batch: Tensor, answers: Tensor, rate: float | Tensor) -> None:
        descent.forget_gradients()
        loss = gradients(classifier, batch, answers)
        latest.copy_(loss)
        total.add_(loss)
        descent.step(rate)
        if after_step is not None:
            after_step()

    step: Callable[..., None] = take
    if replayed and device.type == "cuda" and n_steps >= _WORTH_RECORDING:
        rates = torch.tensor(rates, device=device)
        buffers = list(classifier.buffers())
        step = Replayed(
            take,
            lambda: (*classifier.parameters(), *buffers, *descent.sums, latest, total),
            lambda: descent.judged(buffers),
        )
    classifier.train()
    for epoch in range(config.n_epochs):
        yield Progress(title, epoch, config.n_epochs)
        order = torch.randperm(len(labels), generator=generator).to(device)
        total.zero_()
        with seeded_globals(device, generator):
            for number, chosen in enumerate(order.tensor_split(n_batches)):
                batch, answers = augment(images[chosen], labels[chosen], config, generator)
                step(batch, answers, rates[epoch * n_batches + number])
                if watch is not None:
                    watch(latest.clone())
        if not total.isfinite():  # once an epoch, since a GPU is waited for here
            raise NumericsError(
                f"{title}: the loss was not finite in epoch {epoch + 1} of {config.n_epochs}; "
                f"lower the learning rate ({config.learning_rate:g})"
            )
    classifier.eval().requires_grad_(False)
    descent.forget_gradients()
    yield Progress(title, config.n_epochs, config.n_epochs)


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Keep forward passes in train mode from moving batch norm's running statistics."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def weights_moved(moves: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Add to each parameter its move, and put back exactly what was there."""
    before = [(parameter, parameter.detach().clone()) for parameter, _ in moves]
    try:
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        yield
    finally:
        with torch.no_grad():
            # Copied back rather than subtracted, which would leave rounding errors behind.
            for parameter, value in before:
                parameter.copy_(value)


@contextmanager
def seeded_globals(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and put them back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse images and labels that do not fit each other.

    Raises:
        DataError: They do not, or there are fewer than two.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(labels) < 2:
        raise DataError(
            "tuning: expected images (N, C, H, W) and labels (N,) with N of at least 2, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
