"""Feature decoupling: move everything but the benign features, and see where images go."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.features import BenignMaskConfig, FeatureReader, fit_benign_mask
from bdaudit.perturbation import LinfBall

__all__ = ["FeatureDecouplingConfig", "decouple"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDecouplingConfig:
    """Settings of the search for what moves the other features.

    Attributes:
        eps: L-inf radius of the delta, in pixel units.
        n_passes: Passes over the craft images.
        n_images: Images in a mini-batch.
        benign_weight: Weight of keeping the benign features still, against moving the rest.
        mask: Settings of the mask.

    Raises:
        ConfigError: A setting is out of range.
    """

    eps: float = 0.1
    n_passes: int = 8
    n_images: int = 32
    benign_weight: float = 0.01
    mask: BenignMaskConfig = field(default_factory=BenignMaskConfig)

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 1 or min(self.n_passes, self.n_images) < 1:
            raise ConfigError("feature decoupling: expected eps in (0, 1] and counts of 1 or more")


def decouple(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    config: FeatureDecouplingConfig,
    generator: torch.Generator,
) -> Steps[tuple[Tensor, Tensor, int]]:
    """Find one delta that moves the features the task does not use, whatever the target.

    It needs no hypothesis about the target and one run whatever the number of classes.

    Args:
        classifier: The model; its last layer is linear.
        images: (N, C, H, W) clean craft images, where the model is.
        labels: (N,) true labels, there too.
        config: Settings.
        generator: Seeded CPU generator.

    Returns:
        Delta (1, C, H, W); the answers (N,) to images + delta; images differentiated.

    Raises:
        ModelError: The model has no linear last layer.

    Source: Xu et al., ICLR 2024 (BTI-DBF), equation 2. They train a generator network, so that the
    trigger may differ from image to image; here it is one delta for all, which a trigger file can
    hold, and features are scaled by their spread over clean images.
    """
    title = "features beside the benign ones (feature decoupling)"
    reader = FeatureReader(classifier, images[:2])
    with reader.hooked():
        yield Progress(title, 0, config.n_passes)
        with torch.no_grad():
            still = torch.cat([reader.features(part) for part in torch.split(images, 256)])
        mask = fit_benign_mask(reader, still, labels, config.mask)
        spread = still.std(0) + 1e-3 * still.std()
        # Not from 0, where nothing has moved and no direction is better than another.
        ball = LinfBall(config.eps)
        delta = ball.random_point(images[:1].shape, generator).to(images)
        n_batches = max(1, -(-len(images) // config.n_images))
        for done in range(config.n_passes):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            for number, chosen in enumerate(order.tensor_split(n_batches)):
                leaf = delta.detach().requires_grad_()
                # Clamped without losing the gradient of pixels on the bounds.
                shifted = images[chosen] + leaf
                shifted = shifted + (shifted.clamp(0, 1) - shifted).detach()
                moved = (reader.features(shifted) - still[chosen]) / spread
                benign = (mask * moved).square().mean()
                rest = ((1 - mask) * moved).square().mean()
                loss = config.benign_weight * benign - rest
                (gradient,) = torch.autograd.grad(loss, leaf)
                step = config.eps * (1 - (done + number / n_batches) / config.n_passes)
                delta = ball.project(delta - step * gradient.sign())
            yield Progress(title, done + 1, config.n_passes)
        with torch.no_grad():
            answers = torch.cat(
                [
                    reader.logits((part + delta).clamp(0, 1)).argmax(1)
                    for part in torch.split(images, 256)
                ]
            )
    return delta.detach(), answers, config.n_passes * len(images)
