"""Training from scratch: the one loop behind every model of a family that is not made of another.

The loop itself is the defences' (`defenses.tuning.tune`); here are its settings for training from
scratch, and the arithmetic it is done in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import Gradients, TuningConfig, tune
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.models import Classifier, build_network, training_order
from bdaudit.precision import autocasting
from bdaudit.settings import Precision

__all__ = ["TrainingConfig", "gradients_in", "new_classifier", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of training from scratch.

    Attributes:
        images: Most images of the pool that a member is trained on, drawn by its own seed; `None`
            takes all.
        epochs: Passes over them.
        learning_rate: Peak of a one-cycle schedule of SGD.
        batch_size: Most images in a mini-batch.
        momentum: Of SGD.
        weight_decay: Of SGD.
        warm_up: Share of the steps during which the rate rises.
        max_shift: Augmentation: largest shift as a share of the image's shorter side.
        flip: Augmentation: flip left to right; off where left and right differ in meaning.
        precision: "bfloat16" trains, and defends, under autocast: the weights stay float32.

    Raises:
        ConfigError: A setting is out of range.
    """

    images: int | None = None
    epochs: int = 10
    learning_rate: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.3
    max_shift: float = 0.08
    flip: bool = True
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise ConfigError(f"images: expected 2 or more, got {self.images}")
        if self.epochs < 1:
            raise ConfigError(f"epochs: expected 1 or more, got {self.epochs}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision: expected float32 or bfloat16, got {self.precision!r}")
        self.tuning()  # checks the rest

    def tuning(self) -> TuningConfig:
        """Return the settings of the loop."""
        return TuningConfig(
            learning_rate=self.learning_rate,
            n_epochs=self.epochs,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warm_up=self.warm_up,
            max_shift=self.max_shift,
            flip=self.flip,
        )


def new_classifier(
    arch: str,
    *,
    num_classes: int,
    in_channels: int,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    input_size: tuple[int, int] | None = None,
    generator: torch.Generator,
) -> Classifier:
    """Build a classifier with fresh weights on the CPU, ready to be trained.

    Args:
        arch: As `build_network` spells it.
        num_classes: Length of the logits.
        in_channels: Channels of the images.
        mean: Subtracted from [0, 1] images.
        std: Divisor, likewise.
        input_size: (H, W) to resize to inside the model.
        generator: Seeds the weights.

    Raises:
        ModelError: The architecture is unknown.
    """
    network = build_network(
        arch, num_classes=num_classes, in_channels=in_channels, generator=generator
    )
    classifier = Classifier(network, mean=mean, std=std, input_size=input_size)
    # Channels-last convolutions train faster; what is saved is contiguous again.
    return classifier.to(memory_format=training_order(classifier, "cpu"))


def train(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    config: TrainingConfig,
    generator: torch.Generator,
    title: str = "training",
    gradients: Gradients | None = None,
) -> Steps[Classifier]:
    """Train a classifier in place.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K), on any device.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) what it is taught.
        config: Settings; `config.images` is the caller's to heed.
        generator: Seeded CPU generator.
        title: What `Progress` calls the step.
        gradients: How a mini-batch's gradient comes about; by default of the cross-entropy.

    Returns:
        `classifier`, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.
    """
    yield from tune(
        classifier,
        images,
        labels,
        config=config.tuning(),
        generator=generator,
        title=title,
        gradients=gradients or gradients_in(config.precision),
        replayed=gradients is None,
    )
    return classifier


def gradients_in(precision: Precision) -> Gradients:
    """Return what adds the gradient of the mean cross-entropy, with the network in `precision`.

    The loss itself is in float32.
    """

    def backpropagate(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=training_order(classifier, images.device))
        with autocasting(images.device, precision):
            logits = classifier(images)
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return backpropagate
