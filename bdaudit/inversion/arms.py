"""What a search tries to make a trigger do: one hypothesis about the target, an arm of the race."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.errors import DataError
from bdaudit.triggers import MIN_POISONED, NOT_COUNTED, TargetRule

__all__ = ["ANY_OTHER", "Arm", "as_rivals", "describe", "draw_batches", "is_won", "make_arms"]

ANY_OTHER = "any other class"
"""Name of the hypothesis that the trigger takes images away from their class, wherever to."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """A target rule with the images that it counts.

    Attributes:
        rule: Which class an image should be taken to; `None` where any but its own will do.
        indices: (N,) into the craft images, at least `MIN_POISONED`.
        targets: (N,) the class each of them should be taken to, or ~y (which is below 0) where it
            should be taken away from y.
    """

    rule: TargetRule | None
    indices: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return int(self.indices.shape[0])


def make_arms(
    rules: Sequence[TargetRule | None], labels: Tensor, num_classes: int
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Find the images that each rule counts.

    Args:
        rules: Hypotheses about the target; `None` for any other class.
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
        if rule is None:
            # Every image counts, and another arm had to have images enough for there to be a race.
            arms.append(Arm(None, torch.arange(len(labels)), ~labels))
            continue
        targets = rule.targets(labels, num_classes)
        indices = (targets != NOT_COUNTED).nonzero()[:, 0]
        if len(indices) < MIN_POISONED:
            skipped.append(f"{describe(rule)} ({len(indices)} images of other classes)")
        else:
            arms.append(Arm(rule, indices, targets[indices]))
    if all(arm.rule is None for arm in arms):
        raise DataError(
            f"{len(labels)} craft images: expected {MIN_POISONED} or more outside of a target "
            f"class, got too few for every one of them ({', '.join(skipped[:3])}); give more "
            "images of more classes"
        )
    return tuple(arms), tuple(skipped)


def is_won(answers: Tensor, targets: Tensor) -> Tensor:
    """Return for each image whether it was classified as its target, as `Arm.targets` has it."""
    return torch.where(targets < 0, answers != ~targets, answers == targets)


def as_rivals(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Put one arm's logits (N, K) in such terms that any targeted loss drives it.

    Where an image should be taken away from y, the others become one class, whose probability is
    the sum of theirs, and that is the target.

    Returns:
        Logits and targets, all of them 0 or above.
    """
    if not bool((targets < 0).all()):
        return logits, targets
    own = ~targets[:, None]
    others = logits.scatter(1, own, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, own), others], dim=1), torch.ones_like(targets)


def describe(rule: TargetRule | None) -> str:
    """Name a rule as a table does."""
    if rule is None:
        return ANY_OTHER
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
