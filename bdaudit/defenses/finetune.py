"""Fine-tuning: training goes on, on clean images only."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bdaudit.defenses.pictures import lessons_of
from bdaudit.defenses.tuning import TuningConfig, trainable_copy
from bdaudit.foundation.progress import Steps

__all__ = ["FinetuneConfig", "finetune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """Settings of `finetune`.

    Attributes:
        tuning: How it trains.
    """

    tuning: TuningConfig = field(default_factory=TuningConfig)


def finetune(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: FinetuneConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Train a copy of `classifier` on clean images under their true labels.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1]. Of a detector all boxes of each picture: it is
            trained on whole pictures with its own losses.
        labels: (N,) true labels.
        config: Settings. The learning rate decides how deep a backdoor goes to sleep: a small one
            leaves it active, a large one costs accuracy.
        generator: Seeded CPU generator.

    Returns:
        The fine-tuned copy, in eval mode, no parameter requiring a gradient.

    Raises:
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: fine-tuning as the baseline defence of Liu et al., "Fine-Pruning: Defending Against
    Backdooring Attacks on Deep Neural Networks", RAID 2018, and of BackdoorBench (Wu et al.,
    NeurIPS 2022), there 100 epochs at learning rate 0.01 on 5 % of the training set. We default to
    few epochs at a larger rate on a one-cycle schedule, for a few hundred images.
    """
    tuned = trainable_copy(classifier)
    yield from lessons_of(tuned, images, labels).tune(
        tuned, config=config.tuning, generator=generator, title="fine-tuning"
    )
    return tuned
