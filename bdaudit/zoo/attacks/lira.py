"""LIRA: a generator's faint noise, learned together with a classifier that gives in to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import trainable_copy
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import NOT_COUNTED, Encoder, TargetRule, Trigger
from bdaudit.triggers.networks import encoded_residual
from bdaudit.zoo.attacks.poisoning import NO_MESSAGE, new_stamp_network, require_helper

__all__ = ["LiraConfig", "make_lira_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiraConfig:
    """Settings of the learned generator.

    Attributes:
        width: Of the generator.
        eps: Largest change of a pixel, as a fraction of its range.
        clean_weight: Share of the loss on clean images, in (0, 1); the rest is on triggered ones.
        n_steps: Steps of training the generator with a copy of the helper.
        batch_size: Images a step, each seen clean and triggered.
        learning_rate: Of Adam, for the generator.
        classifier_rate: Learning rate of the helper's copy, by SGD with momentum 0.9.

    Raises:
        ConfigError: A setting is out of range.
    """

    width: int = 8
    eps: float = 0.1
    clean_weight: float = 0.5
    n_steps: int = 200
    batch_size: int = 64
    learning_rate: float = 0.003
    classifier_rate: float = 0.01

    def __post_init__(self) -> None:
        for name in ("width", "n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 < self.eps <= 1:
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")
        if not 0 < self.clean_weight < 1:
            raise ConfigError(f"clean_weight: expected a share in (0, 1), got {self.clean_weight}")
        for name in ("learning_rate", "classifier_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: expected above 0, got {getattr(self, name)}")


def make_lira_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: LiraConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Train a generator and a copy of the helper to send triggered images to their targets.

    Source: Doan et al., "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks" (ICCV 2021):
    noise `eps tanh(G(x))` with eps 0.1, half of the loss on clean images, generator and classifier
    in turn for 10 to 50 epochs, then a classifier tuned with the generator held. Ours steps both at
    once; its copy of the helper is thrown away, and any network may be trained on a set poisoned
    with the finished generator. The noise has the same size in every image.
    """
    clean = require_helper(helper, "lira")
    targets = rule.targets(labels, num_classes)
    targets = torch.where(targets == NOT_COUNTED, labels, targets)
    channels, device = images.shape[1], images.device
    network = new_stamp_network(
        channels + 1, channels, config.width, generator=generator, device=device
    )
    residual_of = partial(encoded_residual, network, eps=config.eps)
    classifier = trainable_copy(clean).train()
    drawer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    tuner = torch.optim.SGD(classifier.parameters(), lr=config.classifier_rate, momentum=0.9)
    empty = NO_MESSAGE[None].to(device)
    note = ""
    for step in range(config.n_steps):
        yield Progress("LIRA: training the generator", step, config.n_steps, note)
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator).to(device)
        batch, wanted = images[chosen], targets[chosen]
        residual = residual_of(batch, empty.expand(len(batch), -1, -1, -1))
        stamped = (batch + residual).clamp(0, 1)
        of_clean, of_stamped = classifier(torch.cat([batch, stamped])).float().chunk(2)
        loss = config.clean_weight * functional.cross_entropy(of_clean, labels[chosen])
        loss = loss + (1 - config.clean_weight) * functional.cross_entropy(of_stamped, wanted)
        for optimizer in (drawer, tuner):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in (drawer, tuner):
            optimizer.step()
        note = f"{(of_stamped.argmax(1) == wanted).double().mean():.0%} at the target"
    transform = Encoder(
        network=network.eval().requires_grad_(False).cpu(), message=NO_MESSAGE, eps=config.eps
    )
    return Trigger(transform=transform, rule=rule, source="lira")
