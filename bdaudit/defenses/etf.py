"""ETF fine-tuning: a fixed head with all classes equally far apart, and fine-tuning behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor, nn

from bdaudit.defenses.layers import logit_head
from bdaudit.defenses.tuning import TuningConfig, check_images, trainable_copy, tune
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Steps

__all__ = ["EtfConfig", "simplex_frame", "tune_behind_simplex"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EtfConfig:
    """Settings of `tune_behind_simplex`.

    Attributes:
        tuning: How the rest of the network trains.
    """

    tuning: TuningConfig = field(
        default_factory=lambda: TuningConfig(learning_rate=0.05, n_epochs=10)
    )


def tune_behind_simplex(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: EtfConfig,
    generator: torch.Generator,
) -> Steps[nn.Module]:
    """Fine-tune a copy of `classifier` behind a head that is a random simplex frame and stays so.

    In a network trained to the end the features of the classes and the weights of the head form a
    simplex equiangular tight frame: as far from one another as can be. A backdoor disturbs this,
    since the target must be near to all. A head that is such a frame, turned at random, leaves the
    old path from trigger to target without an end, and training the features to it builds no new
    one.

    Args:
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is, on its device.
        images: (N, C, H, W) clean images in [0, 1].
        labels: (N,) true labels.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        The tuned copy, in eval mode, no parameter requiring a gradient; the head's bias is 0.

    Raises:
        ModelError: The logits do not come from a linear layer, or it has fewer than K - 1 inputs.
        DataError: Images and labels do not fit each other.
        NumericsError: Training diverged.

    Source: Gu, Fields, Jandali, Javidi and Koushanfar, "Trojan Cleansing with Neural Collapse",
    arXiv 2411.12914, of which we know the idea and not the settings: the last layer becomes a
    random simplex frame, is frozen, and the rest is fine-tuned on a little clean data. We give the
    frame the length of the old head, and train for ten epochs from a peak of 0.05.
    """
    check_images(images, labels)
    tuned = trainable_copy(classifier)
    head = logit_head(tuned, images, "ETF fine-tuning")
    if head.in_features < head.out_features - 1:
        raise ModelError(
            f"ETF fine-tuning: expected {head.out_features - 1} features or more before the head, "
            f"which {head.out_features} classes equally far apart need, got {head.in_features}; "
            "use another defence, such as fine-tuning"
        )
    with torch.no_grad():
        frame = simplex_frame(head.out_features, head.in_features, generator)
        length = torch.linalg.vector_norm(head.weight) / sqrt(head.out_features)
        head.weight.copy_(frame.to(head.weight) * length)
        if head.bias is not None:
            head.bias.zero_()
    head.requires_grad_(False)
    yield from tune(
        tuned,
        images,
        labels,
        config=config.tuning,
        generator=generator,
        title="ETF fine-tuning",
    )
    return tuned


def simplex_frame(num_classes: int, n_features: int, generator: torch.Generator) -> Tensor:
    """Draw K unit vectors whose cosines are all -1 / (K - 1): a simplex, turned at random.

    Args:
        num_classes: K, 2 or more.
        n_features: Length of each, K - 1 or more.
        generator: Seeded CPU generator.

    Returns:
        (K, n_features) on the CPU.
    """
    # Corners of a simplex around 0 span K - 1 dimensions: the plane orthogonal to (1, ..., 1).
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    corners = torch.linalg.eigh(centred).eigenvectors[:, 1:]  # (K, K - 1), that of 0 left out
    draw = torch.randn(n_features, num_classes - 1, generator=generator, dtype=torch.float64)
    turned, _ = torch.linalg.qr(draw)  # (n_features, K - 1), orthonormal columns
    frame: Tensor = sqrt(num_classes / (num_classes - 1)) * (corners @ turned.T)
    return frame.float()
