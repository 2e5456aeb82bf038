"""What white-box searches lower, as a function of their deltas alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bdaudit.errors import ConfigError
from bdaudit.perturbation import apply_delta, mean_of_counted

__all__ = [
    "CountedLoss",
    "CraftSet",
    "MiniBatch",
    "Objective",
    "SpecificTerms",
    "ask",
    "bytes_held",
    "memory_layout",
    "shown",
    "specific_objective",
    "standard_objective",
]

CountedLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (R, B, K), targets (R, B) and which images count (R, B), to losses (R, B).

What depends on a whole mini-batch depends on its own row, and on images that count, alone.
"""


@dataclass(frozen=True, slots=True, eq=False)
class CraftSet:
    """The images a perturbation is made on, where the model is.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        targets: (N,) int64, the class each image should be taken to.
        clean: (N, C, H, W) the images without the trigger, for the specific objective.
        labels: (N,) their true labels, for the specific objective.
    """

    images: Tensor
    targets: Tensor
    clean: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return int(self.targets.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class MiniBatch:
    """A mini-batch of B images for each of R searches; what only fills it up does not count.

    Attributes:
        images: (R x B, C, H, W), row after row.
        targets: (R, B).
        counted: (R, B), whether an image is of the mini-batch.
        clean: (R x B, C, H, W), for the specific objective.
        labels: (R, B), for the specific objective.
    """

    images: Tensor
    targets: Tensor
    counted: Tensor
    clean: Tensor | None = None
    labels: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds, in the order in which a MiniBatch is made of it."""
        held = (self.images, self.targets, self.counted, self.clean, self.labels)
        return tuple(tensor for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The mean loss of each search over its mini-batch, and how many of its images are won.

    Attributes:
        evaluate: Deltas (R, C, H, W) and a mini-batch to the mean losses (R,) and the numbers of
            images classified as their target (R,), on the device. Nothing in it waits for the
            device, and no row depends on another.
        models_per_image: Images differentiated for each craft image.
        only_attacks: Whether nothing is left to gain once every image is won.
    """

    evaluate: Callable[[Tensor, MiniBatch], tuple[Tensor, Tensor]]
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


def shown(images: Tensor, deltas: Tensor) -> Tensor:
    """Return clamp(images + delta, 0, 1) (R x B, C, H, W), each row of B with its own delta.

    Args:
        images: (R x B, C, H, W), row after row.
        deltas: (R, C, H, W).
    """
    if len(deltas) == 1:
        return apply_delta(images, deltas)
    in_rows = images.view(len(deltas), -1, *images.shape[1:])
    perturbed = apply_delta(in_rows, deltas[:, None]).flatten(0, 1)
    return perturbed.contiguous(memory_format=memory_layout(images))


def memory_layout(images: Tensor) -> torch.memory_format:
    """Return the memory format of images (N, C, H, W): channels last, or the usual one."""
    if images.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last


def bytes_held(classifier: nn.Module, images: Tensor, *, bf16: bool) -> int:
    """Return the bytes that one forward pass keeps for the way back, weights left out."""
    weights = {tensor.data_ptr() for tensor in chain(classifier.parameters(), classifier.buffers())}
    held: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        logits = ask(classifier, images.clone().requires_grad_(), bf16=bf16)
    return sum(held.values()) + logits.numel() * logits.element_size()


def standard_objective(classifier: nn.Module, loss: CountedLoss, *, bf16: bool) -> Objective:
    """Take craft images + delta to their targets."""

    def evaluate(deltas: Tensor, batch: MiniBatch) -> tuple[Tensor, Tensor]:
        logits = ask(classifier, shown(batch.images, deltas), bf16=bf16)
        logits = logits.view(*batch.targets.shape, -1)
        won = ((logits.argmax(-1) == batch.targets) & batch.counted).sum(-1)
        return _mean(loss, logits, batch.targets, batch.counted), won

    return Objective(evaluate, models_per_image=1, only_attacks=True)


def specific_objective(
    classifier: nn.Module, loss: CountedLoss, terms: SpecificTerms, *, bf16: bool
) -> Objective:
    """Take craft images + delta to their targets, and leave alone what `terms` name.

    All terms are the same loss, the attack's toward the target and the others toward the true
    label, so that no term is on another scale than the rest: with `smoothed_failure` the sum is
    a smooth count of triggered images not won plus weighted counts of answers disturbed.

    Mini-batches must hold clean images and labels. Of `terms` only reference and weights are
    looked at.

    Source: ours (the paper has the attack term alone); see docs/reactivation.md.
    """
    attack = standard_objective(classifier, loss, bf16=bf16)

    def disturbed(model: nn.Module, images: Tensor, deltas: Tensor, batch: MiniBatch) -> Tensor:
        assert batch.labels is not None
        logits = ask(model, shown(images, deltas), bf16=bf16)
        logits = logits.view(*batch.labels.shape, -1)
        return _mean(loss, logits, batch.labels, batch.counted)

    def evaluate(deltas: Tensor, batch: MiniBatch) -> tuple[Tensor, Tensor]:
        assert batch.clean is not None
        total, won = attack.evaluate(deltas, batch)
        total = total + terms.clean_weight * disturbed(classifier, batch.clean, deltas, batch)
        if terms.reference is not None:
            moved = disturbed(terms.reference, batch.images, deltas, batch)
            total = total + terms.reference_weight * moved
        return total, won

    extra_models = 1 if terms.reference is None else 2
    return Objective(evaluate, attack.models_per_image + extra_models, only_attacks=False)


def _mean(loss: CountedLoss, logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Return the mean losses (R,) over the images that count."""
    return mean_of_counted(loss(logits, targets, counted), counted)
