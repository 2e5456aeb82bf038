"""A network that puts something like a backdoor's trigger on images, made from the model alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.layers import logit_head
from bdaudit.detection import sparing_marks
from bdaudit.errors import ConfigError, NumericsError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.features import BenignMaskConfig, FeatureReader, fit_benign_mask
from bdaudit.scoring import evaluating

__all__ = ["SynthesisConfig", "TriggerNetwork", "train_trigger_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisConfig:
    """Settings of `train_trigger_network`.

    Attributes:
        n_epochs: Passes over the images.
        batch_size: Most images in a mini-batch.
        learning_rate: Of Adam.
        bound: Largest mean squared change of an image's pixels, in pixel units.
        benign_weight: Weight of keeping the benign features still, against moving the rest.
        mask: Settings of the mask that tells them apart.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_epochs: int = 6
    batch_size: int = 64
    learning_rate: float = 0.01
    bound: float = 0.02
    benign_weight: float = 0.01
    mask: BenignMaskConfig = field(default_factory=BenignMaskConfig)

    def __post_init__(self) -> None:
        if min(self.n_epochs, self.batch_size) < 1:
            raise ConfigError("n_epochs, batch_size: expected 1 or more")
        for name in ("learning_rate", "bound"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a finite number above 0, got {value}")
        if not (isfinite(self.benign_weight) and self.benign_weight >= 0):
            raise ConfigError(f"benign_weight: expected 0 or more, got {self.benign_weight}")


class TriggerNetwork(nn.Module):
    """Adds to each image a pattern of its own and one for all.

    Both start near zero, so that training starts from the images as they are.

    Args:
        image_shape: (C, H, W).
        generator: Seeded CPU generator of the initial weights.
    """

    def __init__(self, image_shape: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        channels, width = image_shape[0], 16
        self.common = nn.Parameter(torch.zeros(1, *image_shape))
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in ((channels, width), (width, width), (width, channels))
        )
        with torch.no_grad():
            for place, parameter in enumerate(self.layers.parameters()):
                scale = 0.01 if place >= 4 else (2 / parameter[0].numel()) ** 0.5
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(scale * drawn if parameter.ndim == 4 else 0 * drawn)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) in [0, 1] to changed ones in [0, 1]."""
        hidden = images
        for layer in self.layers[:-1]:
            hidden = functional.relu(layer(hidden))
        added = torch.tanh(self.layers[-1](hidden) + self.common)
        changed = images + sparing_marks(added, images)
        # Clamped without losing the gradient of pixels on the bounds.
        return changed + (changed.clamp(0.0, 1.0) - changed).detach()


def train_trigger_network(
    network: TriggerNetwork,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    target: int | None,
    config: SynthesisConfig,
    generator: torch.Generator,
    title: str,
) -> Steps[int]:
    """Train `network` to move the features that the task does not use, by a small change of pixels.

    A mask over the features that the last layer reads tells the benign ones, which answer rightly
    on their own, from the rest. A backdoor's features are among the rest, and a change that moves
    those most is much like its trigger.

    Args:
        network: On the classifier's device; trained in place.
        classifier: Maps (n, C, H, W) in [0, 1] to logits (n, K); left as it is.
        images: (N, C, H, W) clean images in [0, 1], on the classifier's device.
        labels: (N,) true labels, there too.
        target: Class that the changed images should go to besides, or `None` while it is unknown.
        config: Settings.
        generator: Seeded CPU generator.
        title: What `Progress` calls the step.

    Returns:
        The class to which most of the changed images of other classes go.

    Raises:
        ModelError: The logits do not come from a linear layer.
        NumericsError: The loss was not finite.

    Source: Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling
    Benign Features" (BTI-DBF), ICLR 2024. They train a U-Net, first as an autoencoder; ours adds to
    the image, so it starts as the identity. Their bounds on the change are switches between two
    losses, ours is a penalty beyond the bound, and features are scaled by their spread.
    """
    # A network without one is refused in words that fit a defence.
    logit_head(classifier, images[:2], title)
    reader = FeatureReader(classifier, images[:2])
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    n_batches = max(1, ceil(len(labels) / config.batch_size))
    with evaluating(classifier), reader.hooked():
        with torch.no_grad():
            still = torch.cat([reader.features(part) for part in torch.split(images, 256)])
        mask = fit_benign_mask(reader, still, labels, config.mask)
        spread = still.std(0) + 1e-3 * still.std()
        for epoch in range(config.n_epochs):
            yield Progress(title, epoch, config.n_epochs)
            order = torch.randperm(len(labels), generator=generator).to(images.device)
            for chosen in order.tensor_split(n_batches):
                changed = network(images[chosen])
                size = (changed - images[chosen]).square().mean((1, 2, 3))
                features = reader.features(changed)
                moved = (features - still[chosen]) / spread
                rest = ((1 - mask) * moved).square().mean()
                # The logarithm, since where nothing has moved the plain term has no slope.
                loss = config.benign_weight * (mask * moved).square().mean() - rest.log()
                loss = loss + functional.relu(size / config.bound - 1).mean()
                if target is not None:
                    logits = reader.read_out(features).float()
                    wanted = torch.full_like(labels[chosen], target)
                    loss = loss + functional.cross_entropy(logits, wanted)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            logits = torch.cat([reader.logits(network(part)) for part in torch.split(images, 256)])
    if not logits.isfinite().all():
        raise NumericsError(f"{title}: the loss was not finite; lower its learning rate")
    yield Progress(title, config.n_epochs, config.n_epochs)
    answers = logits.argmax(1)
    return int(answers[answers != labels].bincount(minlength=logits.shape[1]).argmax())
