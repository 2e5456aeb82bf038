"""What a white-box search lowers, as a function of delta alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.perturbation import Loss, apply_delta

__all__ = [
    "CraftSet",
    "Objective",
    "SpecificTerms",
    "ask",
    "specific_objective",
    "standard_objective",
]


@dataclass(frozen=True, slots=True, eq=False)
class CraftSet:
    """The images a perturbation is made on, where the model is.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        targets: (N,) int64, the class each image should be taken to.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.targets.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A mean loss over a mini-batch, and how many of its images are won.

    Attributes:
        evaluate: Delta (1, C, H, W) and craft indices (n,) to the mean loss and the number of
            images classified as their target, both tensors of no dimensions on the device.
        models_per_image: Images differentiated for each craft image.
        only_attacks: Whether nothing is left to gain once every image is won.
    """

    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    models_per_image: int
    only_attacks: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpecificTerms:
    """What a specific delta must leave alone.

    Attributes:
        clean: (N, C, H, W) the craft images without the trigger, row by row.
        labels: (N,) their true labels.
        reference: An innocent model that should stay right on the triggered images + delta, on
            the same device; `None` leaves that term out.
        clean_weight: Weight of keeping D's answers on clean + delta against the attack.
        reference_weight: Weight of keeping the reference's answers on triggered + delta.
    """

    clean: Tensor
    labels: Tensor
    reference: nn.Module | None = None
    clean_weight: float = 1.0
    reference_weight: float = 1.0

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.labels):
            raise ConfigError(
                f"specific objective: {len(self.clean)} clean images, {len(self.labels)} labels"
            )
        if min(self.clean_weight, self.reference_weight) < 0:
            raise ConfigError("specific objective: weights must be 0 or more")


def ask(classifier: nn.Module, images: Tensor, *, bf16: bool) -> Tensor:
    """Return the logits (n, K) in float32, computed under bfloat16 autocast where wanted."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits: Tensor = classifier(images)
    return logits.float()


def standard_objective(
    classifier: nn.Module, craft: CraftSet, loss: Loss, *, bf16: bool
) -> Objective:
    """Take craft images + delta to their targets."""

    def evaluate(delta: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        logits = ask(classifier, apply_delta(craft.images[indices], delta), bf16=bf16)
        targets = craft.targets[indices]
        return loss(logits, targets).mean(), (logits.argmax(1) == targets).sum()

    return Objective(evaluate, models_per_image=1, only_attacks=True)


def specific_objective(
    classifier: nn.Module, craft: CraftSet, loss: Loss, terms: SpecificTerms, *, bf16: bool
) -> Objective:
    """Take craft images + delta to their targets, and leave alone what `terms` name.

    All terms are the same loss, the attack's toward the target and the others toward the true
    label, so that no term is on another scale than the rest: with `smoothed_failure` the sum is
    a smooth count of triggered images not won plus weighted counts of answers disturbed.

    Source: ours (the paper has the attack term alone); see docs/reactivation.md.
    """
    attack = standard_objective(classifier, craft, loss, bf16=bf16)
    clean = terms.clean.to(craft.images)
    labels = terms.labels.to(craft.images.device)

    def disturbed(model: nn.Module, images: Tensor, delta: Tensor, indices: Tensor) -> Tensor:
        logits = ask(model, apply_delta(images[indices], delta), bf16=bf16)
        return loss(logits, labels[indices]).mean()

    def evaluate(delta: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        total, won = attack.evaluate(delta, indices)
        total = total + terms.clean_weight * disturbed(classifier, clean, delta, indices)
        if terms.reference is not None:
            moved = disturbed(terms.reference, craft.images, delta, indices)
            total = total + terms.reference_weight * moved
        return total, won

    extra_models = 1 if terms.reference is None else 2
    return Objective(evaluate, attack.models_per_image + extra_models, only_attacks=False)
