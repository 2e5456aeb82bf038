"""SEAM, selective amnesia: forget everything by random labels, then learn the task again."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.forgetting import forget
from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import TuningConfig, check_images, trainable_copy
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps

__all__ = ["SeamConfig", "forget_and_recover", "other_labels"]

_DECAY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamConfig:
    """Settings of `forget_and_recover`.

    Attributes:
        forgetting_share: Share of the images that random labels are put on.
        forgetting_rate: Learning rate of the forgetting.
        forgetting_batch_size: Most images in a mini-batch of it.
        max_forgetting_epochs: Passes over those images after which forgetting ends at the latest;
            it ends as soon as the accuracy on them is that of always guessing the commonest class.
        tuning: How the task is learned again, on all images.

    Raises:
        ConfigError: A setting is out of range.
    """

    forgetting_share: float = 0.1
    forgetting_rate: float = 0.1
    forgetting_batch_size: int = 100
    max_forgetting_epochs: int = 80
    tuning: TuningConfig = field(
        default_factory=lambda: TuningConfig(learning_rate=0.05, n_epochs=10)
    )

    def __post_init__(self) -> None:
        if not 0 < self.forgetting_share <= 1:
            raise ConfigError(f"forgetting_share: expected in (0, 1], got {self.forgetting_share}")
        if not (isfinite(self.forgetting_rate) and self.forgetting_rate > 0):
            raise ConfigError(
                f"forgetting_rate: expected a finite number above 0, got {self.forgetting_rate}"
            )
        for name, least in (("forgetting_batch_size", 2), ("max_forgetting_epochs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")


def forget_and_recover(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: SeamConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Make a copy of `classifier` forget its task and the backdoor with it, and teach it the task.

    A few clean images under random labels, never their own and new ones in every step, make the
    network forget at once what it does on clean images and on triggered ones, which share its
    features. Fine-tuning under the true labels brings back the first and not the second.

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
        NumericsError: Forgetting or training diverged.

    Source: Zhu et al., "Selective Amnesia: On Efficient, High-Fidelity and Blind Suppression of
    Backdoor Effects in Trojaned Machine Learning Models", S&P 2023: forgetting on 0.1 % of the
    training set and recovery on 10 %; a public reimplementation forgets on a tenth of 2,000 clean
    images and recovers on the others, by SGD at 0.1 with momentum 0.9 and decay 1e-4, until the
    accuracy is under 0.2 and over 0.97. We forget down to a guess, recover on all images for a
    fixed number of epochs on a one-cycle schedule, and augment them there. Unlearning by gradient
    ascent and then relearning, which some call a defence of its own, differs in how it forgets
    only; the first half of RNP does that.
    """
    check_images(images, labels)
    tuned = trainable_copy(classifier)
    n_forgotten = max(2, int(config.forgetting_share * len(labels)))
    chosen = torch.randperm(len(labels), generator=generator)[:n_forgotten]

    def loss(logits: Tensor, answers: Tensor) -> Tensor:
        return functional.cross_entropy(logits, other_labels(answers, logits.shape[1], generator))

    yield from forget(
        tuned,
        images[chosen],
        labels[chosen],
        loss=loss,
        learning_rate=config.forgetting_rate,
        batch_size=config.forgetting_batch_size,
        max_epochs=config.max_forgetting_epochs,
        generator=generator,
        title="SEAM: forgetting",
        rate_setting="forgetting_rate",
        weight_decay=_DECAY,
    )
    yield from lessons_of(tuned, images, labels).tune(
        tuned,
        config=config.tuning,
        generator=generator,
        title="SEAM: recovery",
    )
    return tuned


def other_labels(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw for each label (n,) one of the others, all as likely, on the labels' device."""
    turns = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + turns.to(labels.device)) % num_classes
