"""What a search tries to make a trigger do: one hypothesis about the target, an arm of the race."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.errors import DataError
from bdaudit.triggers import MIN_POISONED, NOT_COUNTED, TargetRule

__all__ = ["Arm", "draw_batches", "make_arms"]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """A target rule with the images that it counts.

    Attributes:
        rule: Which class an image should be taken to.
        indices: (N,) into the craft images, at least `MIN_POISONED`.
        targets: (N,) the class each of them should be taken to.
    """

    rule: TargetRule
    indices: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.indices.shape[0])


def make_arms(
    rules: Sequence[TargetRule], labels: Tensor, num_classes: int
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Find the images that each rule counts.

    Args:
        rules: Hypotheses about the target.
        labels: (N,) true labels of the craft images, on the CPU.
        num_classes: Classes of the model.

    Returns:
        The arms, and in words which rules had too few images for one.

    Raises:
        DataError: No rule has enough images.
        TriggerError: A rule names a class that the model does not have.
    """
    arms, skipped = [], []
    for rule in rules:
        targets = rule.targets(labels, num_classes)
        indices = (targets != NOT_COUNTED).nonzero()[:, 0]
        if len(indices) < MIN_POISONED:
            skipped.append(f"{describe(rule)} ({len(indices)} images of other classes)")
        else:
            arms.append(Arm(rule, indices, targets[indices]))
    if not arms:
        raise DataError(
            f"{len(labels)} craft images: expected {MIN_POISONED} or more outside of a target "
            f"class, got too few for every one of them ({', '.join(skipped[:3])}); give more "
            "images of more classes"
        )
    return tuple(arms), tuple(skipped)


def describe(rule: TargetRule) -> str:
    """Name a rule as a table does."""
    return rule.name if rule.target_label is None else f"class {rule.target_label}"


def draw_batches(
    arms: Sequence[Arm], n_images: int, n_batches: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Draw mini-batches for several arms at once.

    Every arm goes through its own images in a random order, and through them again where there
    are fewer than `n_batches * n_images`.

    Args:
        arms: K arms.
        n_images: Images in a mini-batch of one arm.
        n_batches: Mini-batches.
        generator: Seeded CPU generator.

    Returns:
        For each mini-batch the indices (K, n) of the images and their targets (K, n). n is
        `n_images`, or the size of the smallest arm.
    """
    n = min([n_images, *(len(arm) for arm in arms)])
    rows = []
    for arm in arms:
        rounds = -(-n * n_batches // len(arm))
        order = torch.cat([torch.randperm(len(arm), generator=generator) for _ in range(rounds)])
        rows.append(order[: n * n_batches].view(n_batches, n))
    return [
        (
            torch.stack([arm.indices[row[k]] for arm, row in zip(arms, rows, strict=True)]),
            torch.stack([arm.targets[row[k]] for arm, row in zip(arms, rows, strict=True)]),
        )
        for k in range(n_batches)
    ]
