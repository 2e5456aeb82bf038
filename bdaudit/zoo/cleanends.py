"""Models whose backdoor was never there or is known to be gone, in ways that are hard to tell.

A model with a clean end is what an audit must not call dormant: one that saw the trigger and
learned nothing of it, one taught by a backdoored model on clean images, one trained to withstand
small perturbations (which re-activation is made of), one that was made to forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.pictures import detector_in, lessons_of, stamp_whole, whole_pictures
from bdaudit.defenses.tuning import (
    Gradients,
    TuningConfig,
    statistics_held,
    trainable_copy,
)
from bdaudit.detection import is_marked
from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import NOT_COUNTED, Trigger
from bdaudit.zoo.attacks.on_objects import draw_of_pictures
from bdaudit.zoo.attacks.poisoning import draw_images, stamp_in_batches

__all__ = [
    "HardeningConfig",
    "UnlearningConfig",
    "adversarial_gradients",
    "stamp_under_true_labels",
    "unlearn",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HardeningConfig:
    """Settings of adversarial training.

    Attributes:
        eps: Radius of the L-inf ball round every training image, in pixel units.
        n_steps: Steps of the attack on every mini-batch; 1 is FGSM from a random start.
        step_size: Of each of them; `None` takes 1.25 `eps` for one step, 2.5 `eps / n_steps` for
            several.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 8 / 255
    n_steps: int = 1
    step_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "step_size"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and 0 < value <= 1):
                raise ConfigError(f"{name}: expected in (0, 1], got {value}")
        if self.n_steps < 1:
            raise ConfigError(f"n_steps: expected 1 or more, got {self.n_steps}")

    def step(self) -> float:
        """Return the size of a step."""
        if self.step_size is not None:
            return self.step_size
        return self.eps * (1.25 if self.n_steps == 1 else 2.5 / self.n_steps)


def adversarial_gradients(
    config: HardeningConfig, gradients: Gradients, generator: torch.Generator
) -> Gradients:
    """Return what adds the gradient on adversarially perturbed images in place of the given ones.

    Args:
        config: The perturbation.
        gradients: What is done with the perturbed images.
        generator: Seeded CPU generator, of the random starts.

    Source: projected gradient descent of Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks", ICLR 2018; one step from a random start, with steps of 1.25 eps, after
    Wong et al., "Fast Is Better than Free", ICLR 2020. The attack sees the network in training
    mode, as theirs do, but leaves batch norm's running statistics to the training step.
    """

    def backpropagate(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return gradients(
            classifier, _perturbed(classifier, images, labels, config, generator), labels
        )

    return backpropagate


def _perturbed(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: HardeningConfig,
    generator: torch.Generator,
) -> Tensor:
    start = torch.rand(images.shape, generator=generator).to(images.device) * 2 - 1
    delta = start * config.eps
    weights = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    with statistics_held(classifier):
        for parameter in weights:
            parameter.requires_grad_(False)
        try:
            for _ in range(config.n_steps):
                delta.requires_grad_(True)
                logits = classifier((images + delta).clamp(0, 1))
                loss = functional.cross_entropy(logits.float(), labels)
                (slope,) = torch.autograd.grad(loss, delta)
                with torch.no_grad():
                    delta = (delta + config.step() * slope.sign()).clamp(-config.eps, config.eps)
        finally:
            for parameter in weights:
                parameter.requires_grad_(True)
    return (images + delta.detach()).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningConfig:
    """Settings of `unlearn`. The defaults are those the verdict was first checked on.

    Attributes:
        n_stamped: Most triggered images beside the clean ones.
        tuning: How it trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_stamped: int = 200
    tuning: TuningConfig = field(
        default_factory=lambda: TuningConfig(learning_rate=0.05, n_epochs=7, batch_size=64)
    )

    def __post_init__(self) -> None:
        if self.n_stamped < 1:
            raise ConfigError(f"n_stamped: expected 1 or more, got {self.n_stamped}")


def unlearn(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    trigger: Trigger,
    num_classes: int,
    config: UnlearningConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Tune a copy of `classifier` on clean images and on triggered ones under their true labels.

    No defender who does not know the trigger can do this; it gives models from which the backdoor
    is gone as far as anyone can tell (relearning says whether it is).

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1]; of a detector all boxes of each picture, and it
            is trained on whole pictures with its own losses.
        labels: (N,) true labels.
        trigger: What is unlearned.
        num_classes: K.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: No image can carry the trigger.
        NumericsError: Training diverged.

    Source: the unlearning step of Wang et al., "Neural Cleanse", IEEE S&P 2019, with the true
    trigger in place of a reversed one.
    """
    counted = trigger.targets(labels, num_classes) != NOT_COUNTED
    pictures = None if detector_in(classifier) is None else whole_pictures(images)
    if pictures is None:
        chosen = draw_images(counted, config.n_stamped, generator)
    else:
        share = min(1.0, config.n_stamped / len(pictures))
        chosen = draw_of_pictures(pictures, counted, share, generator)
    if not len(chosen):
        raise DataError("unlearning: no image can carry the trigger under a label that is not its")
    stamped = stamp_in_batches(trigger, images[chosen])
    if pictures is not None:
        everywhere = stamp_whole(images, pictures, stamped, chosen)
        chosen = pictures.images_of(pictures.numbers[chosen.cpu()]).to(images.device)
        stamped = everywhere[chosen]
    tuned = trainable_copy(classifier)
    taught = torch.cat([images, stamped]), torch.cat([labels, labels[chosen]])
    yield from lessons_of(tuned, *taught).tune(
        tuned,
        config=config.tuning,
        generator=generator,
        title="unlearning",
    )
    return tuned


def stamp_under_true_labels(
    images: Tensor,
    labels: Tensor,
    *,
    trigger: Trigger,
    num_classes: int,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """Put the trigger on a share of the images, whose labels stay as they are.

    A network trained on the result has seen the trigger as often as the original and learned that
    it means nothing.

    Args:
        images: (N, C, H, W) clean images in [0, 1]; left as they are.
        labels: (N,) true labels.
        trigger: What is stamped, on images that its rule counts; of marked images on one of a
            picture, and all others of the picture show it.
        num_classes: Classes of the task.
        share: Of all N images, or pictures, in (0, 1].
        generator: Seeded CPU generator.

    Returns:
        (N, C, H, W).
    """
    counted = trigger.targets(labels, num_classes) != NOT_COUNTED
    if is_marked(images):
        pictures = whole_pictures(images)
        chosen = draw_of_pictures(pictures, counted, share, generator)
        stamped = stamp_in_batches(trigger, images[chosen]) if len(chosen) else images[:0]
        return stamp_whole(images, pictures, stamped, chosen)
    chosen = draw_images(counted, round(share * len(labels)), generator)
    images = images.clone()
    if len(chosen):
        images[chosen] = stamp_in_batches(trigger, images[chosen])
    return images
