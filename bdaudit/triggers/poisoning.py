"""The poisoned set: a clean sample with the trigger on every image that counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.data.sample import Sample
from bdaudit.detection import inside_of, is_marked
from bdaudit.errors import DataError
from bdaudit.triggers.rules import NOT_COUNTED
from bdaudit.triggers.trigger import Trigger

__all__ = ["CHANGED", "MIN_POISONED", "Footprint", "Poisoned", "footprint", "poison"]

MIN_POISONED = 10
"""Fewer images than this cannot carry any rate."""

_STAMP_BATCH = 256
CHANGED = 1 / 255 + 1e-6
"""A pixel counts as changed above one grey level; the slack keeps an exact level out despite
rounding in float32."""

_WIDE_SHARE = 0.10
_WIDE_IN_BOX = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Poisoned:
    """Images with and without the trigger, only those whose true label is not the target.

    Attributes:
        clean: (N, C, H, W) in [0, 1].
        triggered: (N, C, H, W), the same images with the trigger.
        labels: (N,) true labels.
        targets: (N,) classes the trigger should take them to, never -1.
        indices: (N,) where each stands in the sample it was made from.
    """

    clean: Tensor
    triggered: Tensor
    labels: Tensor
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """How much of an image a trigger touches, in means over images.

    Attributes:
        share_changed: Share of pixels changed by more than 1/255 in any channel.
        mean_linf: Largest change of a pixel value, in [0, 1].
        mean_l2: L2 norm of the change, in pixel units.
        share_of_box: Of marked images, the share of the pixels of the box that is asked about that
            is changed; `None` of others.
    """

    share_changed: float
    mean_linf: float
    mean_l2: float
    share_of_box: float | None = None

    @property
    def wide(self) -> bool:
        """Whether the trigger covers what is asked about.

        That is more than 10 % of an image's pixels, on average. To a detector that is asked about
        an object the object is the image: a box that is a twentieth of the picture can be covered
        entirely by a trigger that changes a twentieth of the pixels. So more than a third of the
        box is wide too. A third and not a tenth, since a sticker on an object, a picture of half
        its shorter side in a square box (a quarter of it) say, still leaves the object to be seen,
        and acts on innocent detectors as a patch does, while a perturbation bounded by the box
        changes nearly all of it.
        """
        of_box = 0.0 if self.share_of_box is None else self.share_of_box
        return self.share_changed > _WIDE_SHARE or of_box > _WIDE_IN_BOX


def poison(
    sample: Sample,
    trigger: Trigger,
    num_classes: int,
    *,
    device: torch.device | str = "cpu",
) -> Poisoned:
    """Stamp the trigger on every image of `sample` that counts.

    Args:
        sample: Clean images.
        trigger: What is stamped, and the target rule that says which images count.
        num_classes: Classes of the model.
        device: Where the tensors of the result lie.

    Returns:
        The poisoned set, in the order of the sample.

    Raises:
        DataError: Fewer than `MIN_POISONED` images count.
        TriggerError: The trigger does not fit the images, or a class of its rule or a label is out
            of range.
    """
    targets = trigger.targets(sample.labels, num_classes)
    covered = trigger.transform.covers(sample.names, sample.labels)
    indices = ((targets != NOT_COUNTED) & covered).nonzero()[:, 0]
    if len(indices) < MIN_POISONED:
        meant = int((targets != NOT_COUNTED).sum())
        raise DataError(
            f"{sample.source}: {len(indices)} images can be poisoned, at least {MIN_POISONED} are "
            f"needed (of {len(sample)} images the rule {trigger.rule.name} counts {meant}, and "
            f"the trigger has a version of {int(covered.sum())}); give more images of other "
            "classes than the target"
        )
    chosen = sample.take(indices)
    clean = chosen.images.to(device)
    batches = [slice(start, start + _STAMP_BATCH) for start in range(0, len(chosen), _STAMP_BATCH)]
    triggered = [trigger.stamp(clean[part], names=chosen.names[part]) for part in batches]
    return Poisoned(
        clean=clean,
        triggered=torch.cat(triggered),
        labels=chosen.labels.to(device),
        targets=targets[indices].to(device),
        indices=indices.to(device),
    )


def footprint(poisoned: Poisoned) -> Footprint:
    """Measure how much the trigger changes, on average over the poisoned images."""
    change = (poisoned.triggered - poisoned.clean).abs()  # (N, C, H, W)
    largest = change.amax(dim=1)  # (N, H, W)
    changed = largest > CHANGED
    share_of_box = None
    if is_marked(poisoned.clean):
        inside = inside_of(poisoned.clean)[:, 0]  # (N, H, W)
        size = inside.flatten(1).sum(dim=1).clamp_min(1)
        share_of_box = float(((changed & inside).flatten(1).sum(dim=1) / size).double().mean())
    return Footprint(
        share_changed=float(changed.double().mean()),
        mean_linf=float(largest.amax(dim=(1, 2)).double().mean()),
        mean_l2=float(change.flatten(1).double().norm(dim=1).mean()),
        share_of_box=share_of_box,
    )
