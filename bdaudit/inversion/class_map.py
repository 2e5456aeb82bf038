"""Where a trigger takes each class, read from what a model answers to it."""

from __future__ import annotations

import torch
from torch import Tensor

from bdaudit.triggers import AllToAll, AllToOne, ClassMap, TargetRule

__all__ = ["class_map_of"]

_MOST = 0.5
"""Share from which most of something is meant: of a class's images, or of the classes."""


def class_map_of(labels: Tensor, answers: Tensor, num_classes: int) -> TargetRule:
    """Return the rule that a model's answers to triggered images follow.

    Args:
        labels: (N,) true labels.
        answers: (N,) what the model says of the images with the trigger.
        num_classes: K.

    Returns:
        All-to-one where most classes go to one class. Otherwise each class whose images mostly go
        to one other class goes there, and the others do not count (where there is none of the
        kind, each goes where most of its moved images go): all-to-all where that is y + 1
        throughout, a class map where not. Whether the images do follow the rule is for held-out
        ones to show.
    """
    counts = torch.zeros(num_classes, num_classes)  # (true, answered)
    counts.index_put_((labels, answers), torch.ones(len(labels)), accumulate=True)
    totals = counts.sum(1)
    counts.fill_diagonal_(0.0)
    moved, to = counts.max(1)
    clear = (moved >= _MOST * totals) & (totals > 0)
    if not bool(clear.any()):
        clear = totals > 0
    classes = torch.arange(num_classes)
    most_common = int(to[clear].mode().values)
    sources = (totals > 0) & (classes != most_common)
    if int((to == most_common)[clear & sources].sum()) > _MOST * int(sources.sum()):
        return AllToOne(most_common)
    to = to.where(clear, classes)
    if torch.equal(to, (classes + 1) % num_classes):
        return AllToAll()
    return ClassMap(tuple(to.tolist()))
