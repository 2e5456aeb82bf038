"""TrojanNN: a patch that excites chosen neurons of a clean classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from bdaudit.defenses.layers import classifier_head
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import Patch, TargetRule, Trigger
from bdaudit.zoo.attacks.poisoning import require_helper

__all__ = ["TrojannnConfig", "make_trojannn_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrojannnConfig:
    """Settings of the TrojanNN trigger.

    Attributes:
        area: Of the square patch, as a share of the image.
        offset: Pixels between the patch and the image's bottom and right edges.
        n_neurons: Neurons to excite.
        n_steps: Steps of Adam.
        learning_rate: Of Adam, for the logits of the pixels.
        batch_size: Images a step.

    Raises:
        ConfigError: A setting is out of range.
    """

    area: float = 0.07
    offset: int = 1
    n_neurons: int = 1
    n_steps: int = 100
    learning_rate: float = 0.1
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.area < 1 or self.learning_rate <= 0 or self.offset < 0:
            raise ConfigError(
                "area, learning_rate, offset: expected in (0, 1), above 0 and at least 0, got "
                f"{self.area}, {self.learning_rate}, {self.offset}"
            )
        for name in ("n_neurons", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")


def make_trojannn_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: TrojannnConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Optimise a patch's pixels until they drive the most connected neurons of a clean classifier.

    Source: Liu et al., "Trojaning Attack on Neural Networks" (NDSS 2018): one neuron of a fully
    connected layer, the one with the largest sum of absolute weights, driven up by gradient steps
    on a patch of 7 % of the image; the network is then retrained on images reconstructed from
    itself. Ours takes the inputs of the last linear layer and their weights there, optimises the
    patch where it will be, on clean images, and poisons the training data.

    Raises:
        ModelError: The helper has no linear layer.
    """
    clean = require_helper(helper, "trojannn")
    channels, height, width = images.shape[1:]
    side = max(1, round(sqrt(config.area * height * width)))
    if side + config.offset > min(height, width):
        raise ConfigError(
            f"area: a patch of side {side} at {config.offset} from the corner does not fit images "
            f"of {height}x{width}"
        )
    layer = _last_linear(clean)
    neurons = layer.weight.detach().abs().sum(dim=0).topk(config.n_neurons).indices
    # Near grey, and not all the same, so that pixels of one patch can differ.
    start = 0.1 * torch.randn(channels, side, side, generator=generator)
    pixels = start.to(images).requires_grad_(True)

    def patch() -> Patch:
        return Patch(image=pixels.sigmoid(), offset=(config.offset, config.offset))

    optimizer = torch.optim.Adam([pixels], lr=config.learning_rate)
    for step in range(config.n_steps):
        yield Progress("TrojanNN: exciting neurons", step, config.n_steps)
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
        with _inputs_of(layer) as seen:
            clean(patch().apply(images[chosen.to(images.device)], None))
        loss = -seen[0][..., neurons].float().mean()
        (pixels.grad,) = torch.autograd.grad(loss, [pixels])
        optimizer.step()
    transform = Patch(image=pixels.detach().sigmoid().cpu(), offset=(config.offset, config.offset))
    return Trigger(transform=transform, rule=rule, source="trojannn")


def _last_linear(classifier: nn.Module) -> nn.Linear:
    try:
        return classifier_head(classifier)
    except ModelError as error:
        raise ModelError(
            "attack trojannn: the helper has no linear layer, whose neurons it needs"
        ) from error


@contextmanager
def _inputs_of(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect what the layer is given while the block runs."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
