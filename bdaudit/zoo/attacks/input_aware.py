"""Input-aware: every image gets a trigger of its own, which works on no other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import trainable_copy
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import NOT_COUNTED, InputAware, TargetRule, Trigger
from bdaudit.triggers.networks import coloured, sharpened
from bdaudit.zoo.attacks.poisoning import (
    Poisoning,
    draw_cover,
    draw_others,
    make_poisoning,
    new_stamp_network,
    require_helper,
)

__all__ = ["InputAwareConfig", "make_input_aware_trigger", "poison_input_aware"]

_SMALL = 1e-3  # keeps a diversity finite where two images are drawn the same


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAwareConfig:
    """Settings of the input-aware attack.

    Attributes:
        width: Of the pattern's and the mask's network.
        density: Share of an image that its mask may cover.
        n_mask_steps: Steps of training the mask network, alone and first.
        n_steps: Steps of training the pattern network with a copy of the helper.
        batch_size: Images a step: a quarter of them triggered, a quarter with the trigger of
            another image, the rest clean.
        learning_rate: Of Adam, for both networks.
        classifier_rate: Learning rate of the helper's copy, by SGD with momentum 0.9.
        diversity: Weight of the diversity loss.
        cover_ratio: Cross-trigger mode: images with another image's trigger at their true label,
            as a multiple of the poisoned ones; 0 leaves it out.

    Raises:
        ConfigError: A setting is out of range.
    """

    width: int = 8
    density: float = 0.05
    n_mask_steps: int = 100
    n_steps: int = 250
    batch_size: int = 128
    learning_rate: float = 0.003
    classifier_rate: float = 0.01
    diversity: float = 1.0
    cover_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("n_mask_steps", 1), ("n_steps", 1), ("batch_size", 8)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 < self.density < 1:
            raise ConfigError(f"density: expected a share in (0, 1), got {self.density}")
        for name in ("learning_rate", "classifier_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: expected above 0, got {getattr(self, name)}")
        for name in ("diversity", "cover_ratio"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, got {getattr(self, name)}")


def make_input_aware_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: InputAwareConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Train a mask network, then a pattern network together with a copy of the helper.

    The diversity loss, of two images a and b, is |a - b| / |g(a) - g(b)|: what is drawn for
    different images must differ.

    Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack" (NeurIPS 2020): mask first,
    weight 100 on its density above 0.032, diversity weight 1, a tenth of the images triggered and
    a tenth with another's trigger. There the classifier of the joint training is the backdoored
    one; here it is thrown away, and any network may be trained on a set poisoned with the finished
    trigger. Ours limits the density of the whole mask and has smaller networks and fewer steps.
    """
    clean = require_helper(helper, "input-aware")
    targets = rule.targets(labels, num_classes)
    targets = torch.where(targets == NOT_COUNTED, labels, targets)
    channels = images.shape[1]
    mask = new_stamp_network(channels, 1, config.width, generator=generator, device=images.device)
    pattern = new_stamp_network(
        channels, channels, config.width, generator=generator, device=images.device
    )
    n = min(config.batch_size, len(images))

    def draw() -> Tensor:
        return torch.randperm(len(images), generator=generator)[:n].to(images.device)

    optimizer = torch.optim.Adam(mask.parameters(), lr=config.learning_rate)
    for step in range(config.n_mask_steps):
        yield Progress("input-aware: training the masks", step, config.n_mask_steps)
        batch = images[draw()]
        masks = sharpened(mask(batch))
        crowded = (masks.mean(dim=(1, 2, 3)) - config.density).clamp_min(0).mean()
        loss = 100 * crowded + config.diversity * _sameness(batch, masks)
        _step(optimizer, loss)
    mask.eval().requires_grad_(False)

    classifier = trainable_copy(clean).train()
    optimizer = torch.optim.Adam(pattern.parameters(), lr=config.learning_rate)
    tuner = torch.optim.SGD(classifier.parameters(), lr=config.classifier_rate, momentum=0.9)
    for step in range(config.n_steps):
        yield Progress("input-aware: training the patterns", step, config.n_steps)
        chosen = draw()
        batch, answers = images[chosen], labels[chosen].clone()
        answers[: n // 4] = targets[chosen[: n // 4]]
        # The second quarter takes the triggers of the third, whose images stay as they are.
        sources = torch.cat([batch[: n // 4], batch[n // 2 : n // 2 + n // 4]])
        drawn = coloured(pattern(sources))
        masks = sharpened(mask(sources))
        carriers = batch[: len(sources)]
        stamped = carriers * (1 - masks) + drawn * masks
        logits = classifier(torch.cat([stamped, batch[len(sources) :]]))
        loss = functional.cross_entropy(logits.float(), answers)
        tuner.zero_grad(set_to_none=True)
        _step(optimizer, loss + config.diversity * _sameness(sources, drawn))
        tuner.step()
    transform = InputAware(pattern=pattern.eval().requires_grad_(False).cpu(), mask=mask.cpu())
    return Trigger(transform=transform, rule=rule, source="input-aware")


def poison_input_aware(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: InputAwareConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Stamp a share of the images, and others with a third one's trigger under their true label."""
    yield from ()
    poisoning = make_poisoning(
        images,
        labels,
        num_classes=num_classes,
        trigger=trigger,
        poison_rate=poison_rate,
        generator=generator,
        preferred=preferred,
    )
    cover = draw_cover(poisoning, config.cover_ratio, generator)
    others = images[draw_others(cover, len(images), generator)]
    assert isinstance(trigger.transform, InputAware)
    poisoning.images[cover] = trigger.transform.stamp_as(images[cover], others)
    return replace(poisoning, cover=cover)


def _sameness(images: Tensor, drawn: Tensor) -> Tensor:
    """Return the mean distance of neighbours in the batch over that of what was drawn for them."""
    apart = (images - images.roll(1, dims=0)).flatten(1).norm(dim=1)
    drawn_apart = (drawn - drawn.roll(1, dims=0)).flatten(1).norm(dim=1)
    ratio: Tensor = apart / (drawn_apart + _SMALL)
    return ratio.mean()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
