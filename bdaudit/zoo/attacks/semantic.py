"""Semantic: every image nudged toward what a clean classifier attends to most in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import Encoder, TargetRule, Trigger
from bdaudit.triggers.networks import encoded_residual
from bdaudit.zoo.attacks.poisoning import NO_MESSAGE, new_stamp_network, require_helper

__all__ = ["SemanticConfig", "attended", "feature_maps", "make_semantic_trigger"]

_SMALL = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticConfig:
    """Settings of the semantic trigger.

    Attributes:
        width: Of the U-Net that embeds it.
        eps: Largest change of a pixel, as a fraction of its range.
        image_weight: Weight of the distance between images; that between features has weight 1.
        n_steps: Steps of training the U-Net.
        batch_size: Images a step.
        learning_rate: Of Adam.

    Raises:
        ConfigError: A setting is out of range.
    """

    width: int = 8
    eps: float = 16 / 255
    image_weight: float = 0.1
    n_steps: int = 150
    batch_size: int = 64
    learning_rate: float = 0.003

    def __post_init__(self) -> None:
        for name in ("width", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 < self.eps <= 1:
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")
        if self.image_weight < 0 or self.learning_rate <= 0:
            raise ConfigError(
                "image_weight, learning_rate: expected 0 or more and above 0, got "
                f"{self.image_weight}, {self.learning_rate}"
            )


def make_semantic_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: SemanticConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Train a U-Net to give images the features that channel attention makes of theirs.

    The trigger of an image x is what the helper's last feature maps M(x) become under `attended`;
    the U-Net changes x so that the helper finds them in it. Loss: the squared distance of the maps,
    over that of the maps before, and `image_weight` times that of the images over `eps` squared.

    Source: Chen, "An Invisible Backdoor Attack Based On Semantic Feature" (arXiv 2405.11551),
    after the paper's text: squeeze-and-excitation scores of a clean victim's last maps, an encoder
    with skip connections that embeds the result, a weighted sum of both distances. Ours scores
    channels by a softmax of their means, with no weights of its own; its U-Net reads the image
    alone, so that a trigger file needs no victim; and its change is held below `eps`.

    Raises:
        ModelError: The helper has no convolution, or its features are no maps.
    """
    clean = require_helper(helper, "semantic")
    channels, device = images.shape[1], images.device
    network = new_stamp_network(
        channels + 1, channels, config.width, generator=generator, device=device
    )
    residual_of = partial(encoded_residual, network, eps=config.eps)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    empty = NO_MESSAGE[None].to(device)
    note = ""
    for step in range(config.n_steps):
        yield Progress("semantic: training the embedding", step, config.n_steps, note)
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
        batch = images[chosen.to(device)]
        with torch.no_grad():
            before = feature_maps(clean, batch)
            wanted = attended(before)
        residual = residual_of(batch, empty.expand(len(batch), -1, -1, -1))
        stamped = (batch + residual).clamp(0, 1)
        apart = (before - wanted).square().mean() + _SMALL
        of_features = (feature_maps(clean, stamped) - wanted).square().mean() / apart
        of_images = (stamped - batch).square().mean() / config.eps**2
        loss = of_features + config.image_weight * of_images
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        note = f"features at {of_features.item():.2f} of their distance"
    transform = Encoder(
        network=network.eval().requires_grad_(False).cpu(), message=NO_MESSAGE, eps=config.eps
    )
    return Trigger(transform=transform, rule=rule, source="semantic")


def attended(maps: Tensor) -> Tensor:
    """Weigh the channels of feature maps by how active they are on the image.

    Args:
        maps: (n, C, h, w).

    Returns:
        (n, C, h, w): each channel times its score, a softmax over channels of their standardised
        mean activations, scaled so that scores have a mean of 1.
    """
    means = maps.mean(dim=(2, 3))  # (n, C)
    spread = means.std(dim=1, keepdim=True, correction=0)
    scores = ((means - means.mean(dim=1, keepdim=True)) / (spread + _SMALL)).softmax(dim=1)
    return maps * (maps.shape[1] * scores)[..., None, None]


def feature_maps(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return what the classifier's last convolution gives, (n, C, h, w) in float32.

    Raises:
        ModelError: It has no convolution, or what it gives is not of that shape.
    """
    convolutions = [part for part in classifier.modules() if isinstance(part, nn.Conv2d)]
    if not convolutions:
        raise ModelError(
            "attack semantic: expected a helper with a convolution, whose feature maps it needs, "
            "found none; choose a convolutional architecture"
        )
    with _outputs_of(convolutions[-1]) as seen:
        classifier(images)
    if not seen or seen[-1].ndim != 4 or seen[-1].shape[1] < 2:
        raise ModelError(
            "attack semantic: expected two feature maps or more from the helper's last "
            f"convolution, got {tuple(seen[-1].shape) if seen else 'none'}"
        )
    return seen[-1].float()


@contextmanager
def _outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the layer gives while the block runs."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()
