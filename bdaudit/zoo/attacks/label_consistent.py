"""Label-consistent: images of the target class made hard to learn but by their trigger."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import TuningConfig, trainable_copy, tune
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.triggers import Patch, TargetRule, Trigger
from bdaudit.zoo.attacks.badnets import checkerboard
from bdaudit.zoo.attacks.poisoning import (
    Poisoning,
    make_poisoning,
    require_helper,
    require_rate,
    require_target,
)

__all__ = ["LabelConsistentConfig", "make_label_consistent_trigger", "poison_label_consistent"]

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConsistentConfig:
    """Settings of the label-consistent attack.

    Attributes:
        size: Side of the square patches in pixels.
        offset: Pixels between a patch and the image's edges.
        eps: Radius in L-infinity of the perturbations, as a fraction of the pixel range.
        n_steps: Steps of projected gradient ascent.
        hardening: How a copy of the helper is trained adversarially before.

    Raises:
        ConfigError: A setting is out of range.
    """

    size: int = 3
    offset: int = 0
    eps: float = 16 / 255
    n_steps: int = 10
    hardening: TuningConfig = field(
        default_factory=lambda: TuningConfig(learning_rate=0.05, n_epochs=2, batch_size=128)
    )

    def __post_init__(self) -> None:
        if self.size < 1 or self.offset < 0 or self.n_steps < 1:
            raise ConfigError(
                "size, offset, n_steps: expected at least 1, 0 and 1, got "
                f"{self.size}, {self.offset}, {self.n_steps}"
            )
        if not 0 < self.eps <= 1:
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")


def make_label_consistent_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: LabelConsistentConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Make a checkerboard in all four corners, each the mirror image of its neighbours.

    Source: Turner et al., "Label-Consistent Backdoor Attacks" (2019). Four corners, theirs too, so
    that flips and crops leave the trigger what it is; theirs are fainter than ours, which are black
    and white. `poison_label_consistent` has the rest.
    """
    require_helper(helper, "label-consistent")
    height, width = images.shape[-2:]
    reach = config.size + config.offset
    if 2 * reach > min(height, width):
        raise ConfigError(
            f"size: patches of {config.size} at {config.offset} from the corners do not fit images "
            f"of {height}x{width}"
        )
    yield from ()
    image, mask = torch.zeros(1, height, width), torch.zeros(1, height, width)
    inside = slice(config.offset, reach)
    for _ in range(2):
        for _ in range(2):
            image[:, inside, inside] = checkerboard(config.size)
            mask[:, inside, inside] = 1
            image, mask = image.flip(2), mask.flip(2)
        image, mask = image.flip(1), mask.flip(1)
    transform = Patch(image=image, mask=mask, corner="top-left")
    trigger = Trigger(transform=transform, rule=rule, source="label-consistent")
    require_target(trigger)
    return trigger


def poison_label_consistent(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: LabelConsistentConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Perturb images of the target class against their own class, then stamp them.

    Their labels stay. What would tell the class is gone from them, so that a network that is to
    get them right learns the trigger.

    Source: Turner et al. (2019), who perturb by projected gradient ascent on a network trained
    adversarially, up to eps 32 of 255 in L-infinity or 1200 in L2, and give the rate as a share of
    the target class. Ours fine-tunes a copy of the clean helper adversarially, with one step from
    a random start (Wong et al., "Fast is better than free", ICLR 2020), and the rate is a share of
    the whole set: more than the target class holds cannot be poisoned.
    """
    require_rate(poison_rate)
    target = require_target(trigger)
    robust = trainable_copy(require_helper(helper, "label-consistent"))

    def gradients(model: nn.Module, batch: Tensor, answers: Tensor) -> Tensor:
        start = config.eps * (2 * torch.rand(batch.shape, generator=generator) - 1)
        hard = _ascend(
            model, batch, answers, start.to(batch), eps=config.eps, size=1.25 * config.eps
        )
        loss = functional.cross_entropy(model(hard).float(), answers)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    yield from tune(
        robust,
        images,
        labels,
        config=config.hardening,
        generator=generator,
        title="label-consistent: adversarial training",
        gradients=gradients,
    )
    perturbed = images.clone()
    for chosen in torch.split((labels == target).nonzero()[:, 0], _BATCH):
        batch, delta = images[chosen], torch.zeros_like(images[chosen])
        for _ in range(config.n_steps):
            hard = _ascend(
                robust,
                batch,
                labels[chosen],
                delta,
                eps=config.eps,
                size=2.5 * config.eps / config.n_steps,
            )
            delta = hard - batch
        perturbed[chosen] = hard
    return make_poisoning(
        images,
        labels,
        num_classes=num_classes,
        trigger=trigger,
        poison_rate=poison_rate,
        generator=generator,
        clean_label=True,
        before=perturbed,
        preferred=preferred,
    )


def _ascend(
    model: nn.Module, images: Tensor, labels: Tensor, delta: Tensor, *, eps: float, size: float
) -> Tensor:
    """Take one sign step up the loss from `images + delta`; return images in [0, 1]."""
    moved = (images + delta).clamp(0, 1).requires_grad_(True)
    loss = functional.cross_entropy(model(moved).float(), labels)
    (gradient,) = torch.autograd.grad(loss, [moved])
    stepped = (moved.detach() + size * gradient.sign() - images).clamp(-eps, eps)
    return (images + stepped).clamp(0, 1)
