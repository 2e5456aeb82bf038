"""The comparison conditions: which images one and the same attack is given, and toward what.

A control here is an input to the attack, not a second attack: whatever search runs on the
triggered images of the defended model runs, with the same settings, on these. Any model can be
pushed to a class by a large enough universal perturbation (Min et al., NeurIPS 2024), so a
re-activated ASR says nothing without them.

Two more controls come for free and need no condition of their own: the *same delta without the
trigger* is scored beside every run, and *innocent models* get the `trigger` condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bdaudit.detection import NOTHING, is_marked
from bdaudit.errors import ConfigError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.records import Condition
from bdaudit.triggers import Poisoned

__all__ = ["AttackImages", "Half", "attack_images", "default_controls"]


@dataclass(frozen=True, slots=True)
class Half:
    """Images an attack is made on, or scored on.

    Attributes:
        images: (N, C, H, W) in [0, 1], what delta is added to.
        targets: (N,) the class each image should be taken to.
        labels: (N,) true labels, never equal to the target.
        clean: (N, C, H, W) the same images without the trigger.
    """

    images: Tensor
    targets: Tensor
    labels: Tensor
    clean: Tensor

    def __len__(self) -> int:
        return int(self.targets.shape[0])


@dataclass(frozen=True)
class AttackImages:
    """One condition: the craft half and the held-out half, which never mix."""

    condition: Condition
    craft: Half
    held_out: Half
    target_label: int | None

    @property
    def has_trigger(self) -> bool:
        """Whether the attacked images carry the trigger."""
        return self.condition != "no_trigger"

    @cached_property
    def sha256(self) -> str:
        """Digest of all images and targets, worked out once: it reads a gigabyte where they do."""
        return digest_tensors(
            {
                f"{half}.{name}": value
                for half, part in (("craft", self.craft), ("held_out", self.held_out))
                for name, value in (
                    ("images", part.images),
                    ("clean", part.clean),
                    ("targets", part.targets),
                )
            }
        )


def attack_images(
    condition: Condition,
    craft: Poisoned,
    held_out: Poisoned,
    *,
    num_classes: int,
    generator: torch.Generator,
) -> AttackImages:
    """Arrange the images of one condition.

    Args:
        condition: `trigger` and `noise` take the triggered images, `no_trigger` the same images
            clean, `wrong_target` the triggered images toward classes that are not the trigger's.
        craft: Poisonable craft images, clean and triggered.
        held_out: Poisonable held-out images, clean and triggered.
        num_classes: K.
        generator: Draws the wrong target.

    Raises:
        ConfigError: A wrong target was asked for with two classes only: an image whose label is
            not the target has no third class to go to.
    """
    if condition == "wrong_target":
        if num_classes < 3:
            raise ConfigError("the wrong-target control needs three classes or more")
        first = int(torch.randint(1, num_classes, (1,), generator=generator))
        shifts = [1 + (first - 1 + k) % (num_classes - 1) for k in range(num_classes - 1)]
        arranged = (
            [_toward_another_class(half, shift, num_classes) for half in (craft, held_out)]
            for shift in shifts
        )
        halves = next((two for two in arranged if all(map(_has_a_class_to_go_to, two))), None)
        if halves is None:
            raise ConfigError("the wrong-target control finds no other class for these images")
    elif condition == "no_trigger":
        halves = [Half(p.clean, p.targets, p.labels, p.clean) for p in (craft, held_out)]
    else:
        halves = [Half(p.triggered, p.targets, p.labels, p.clean) for p in (craft, held_out)]
    return AttackImages(condition, halves[0], halves[1], _only_value(halves[1].targets))


def _toward_another_class(poisoned: Poisoned, shift: int, num_classes: int) -> Half:
    """Move every target by `shift` classes and leave out images that already belong there."""
    targets = (poisoned.targets + shift) % num_classes
    kept = targets != poisoned.labels
    return Half(
        poisoned.triggered[kept], targets[kept], poisoned.labels[kept], poisoned.clean[kept]
    )


def _has_a_class_to_go_to(half: Half) -> bool:
    """Whether there are images left; of a detector's also that none is to become nothing.

    To let objects vanish is easier than to give them another class, and no control of that.
    """
    return bool(len(half.targets)) and not (
        is_marked(half.images) and bool((half.targets == NOTHING).any())
    )


def _only_value(targets: Tensor) -> int | None:
    first = int(targets[0])
    return first if bool((targets == first).all()) else None


def default_controls(num_classes: int) -> Sequence[Condition]:
    """Return the conditions an audit runs on the defended model beside `trigger`."""
    if num_classes < 3:
        return ("no_trigger", "noise")
    return ("no_trigger", "wrong_target", "noise")
