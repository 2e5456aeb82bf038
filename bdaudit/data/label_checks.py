"""Do the labels of the images match the classes of a model?

A class folder that is missing, or classes in another order, leave most of what a model is asked
about intact: its accuracy falls, and nothing else seems wrong. Seen class by class it is plain: the
images of some classes are never, or hardly ever, classified as labelled, while others are fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from bdaudit.records import ClassAnswers

__all__ = ["LabelDoubt", "answers_by_class", "doubt_labels"]

_LEVEL = 0.01  # of wrong alarms, over all classes together
_POOLED_LEVEL = 1e-4
_FAR_BELOW = 0.5  # of what the other classes reach
_FAR_BELOW_TOGETHER = 0.4
_MOSTLY = 0.45
_OFTEN = 0.3
_N_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LabelDoubt:
    """Why labels and a model's classes do not seem to be the same.

    Attributes:
        never_right: Classes whose images are never classified as labelled.
        exchanged: Classes whose images mostly go to one other class, which is itself not found
            under its own label.
        others: Share of right answers over all other classes.
    """

    never_right: tuple[int, ...]
    exchanged: tuple[int, ...]
    others: float

    def explain(
        self, by_class: Sequence[ClassAnswers], class_names: Sequence[str] | None = None
    ) -> str:
        """Return in a sentence what was seen and what to do."""

        def name(index: int) -> str:
            known = class_names is not None and index < len(class_names)
            return f"{index} ({class_names[index]})" if known and class_names else str(index)

        seen = []
        for index in (self.exchanged or self.never_right)[:_N_SHOWN]:
            row = by_class[index]
            taken = ""
            if row.mistaken_for is not None:
                taken = f", {row.n_mistaken} for class {name(row.mistaken_for)}"
            seen.append(
                f"of {row.total} images labelled {name(index)} {row.right} are taken for it{taken}"
            )
        doubted = set(self.exchanged) | set(self.never_right)
        more = len(doubted) - len(seen)
        return (
            "labels probably do not match the model's classes: "
            + "; ".join(seen)
            + (f"; and so for {more} more classes" if more > 0 else "")
            + f"; the other classes reach {self.others:.1%}. Is a class folder missing, or are the "
            "classes in another order? Name them in order with --classes. Where the checkpoint "
            "does not say how images are normalised, give --mean and --std"
        )


def answers_by_class(answers: Tensor, labels: Tensor, num_classes: int) -> tuple[ClassAnswers, ...]:
    """Count answers by true class.

    Args:
        answers: (N,) class answered.
        labels: (N,) class by label.
        num_classes: K; all labels are below it.

    Returns:
        One entry a class, in order of index.
    """
    counts = torch.bincount(
        labels.long() * num_classes + answers.long().clamp(0, num_classes - 1),
        minlength=num_classes * num_classes,
    ).view(num_classes, num_classes)
    right = counts.diagonal().clone()
    totals = counts.sum(dim=1)
    wrong = counts.clone()
    wrong.fill_diagonal_(0)
    most, place = wrong.max(dim=1)
    return tuple(
        ClassAnswers(right=r, total=n, mistaken_for=p if m else None, n_mistaken=m)
        for r, n, p, m in zip(
            right.tolist(), totals.tolist(), place.tolist(), most.tolist(), strict=True
        )
    )


def doubt_labels(by_class: Sequence[ClassAnswers]) -> LabelDoubt | None:
    """Look for classes whose labels are probably not the model's.

    A class is doubted when none of its images is classified as labelled and even the upper
    Clopper-Pearson bound of its accuracy (Bonferroni over the classes) is far below what the others
    surely reach; when its images surely go to another class rather than to it, and that class's own
    do not go there either, as when two are exchanged; or when more classes are never right than
    would be if all reached only 0.4 of what the others do. Hard classes of few images are not
    doubted, nor is one that a model confuses with a class it does know.

    Args:
        by_class: One entry a class.

    Returns:
        What was seen, `None` where there is nothing to doubt.
    """
    present = [index for index, row in enumerate(by_class) if row.total]
    if len(present) < 2:
        return None
    never = [index for index in present if by_class[index].right == 0]
    exchanged = _exchanged(by_class, present)
    fine = [index for index in present if index not in {*never, *exchanged}]
    right = sum(by_class[index].right for index in fine)
    total = sum(by_class[index].total for index in fine)
    reached = _lower_bound(right, total, _LEVEL) if total else 0.0
    surely = [
        index
        for index in never
        if _upper_bound(0, by_class[index].total, _LEVEL / len(present)) < _FAR_BELOW * reached
    ]
    if len(never) > 1 and total:
        as_bad = _FAR_BELOW_TOGETHER * reached
        chances = [(1 - as_bad) ** by_class[index].total for index in present]
        expected = sum(chances) / len(chances)
        test = stats.binomtest(len(never), len(present), expected, alternative="greater")
        if test.pvalue < _POOLED_LEVEL:
            surely = never
    if not surely and not exchanged:
        return None
    return LabelDoubt(tuple(surely), tuple(exchanged), right / total if total else 0.0)


def _exchanged(by_class: Sequence[ClassAnswers], present: Sequence[int]) -> list[int]:
    """Find classes whose images go to another one, whose own images go elsewhere in turn.

    They come in chains (0 to 1, 1 to 2, ...), as a missing folder makes them, and in rings. Each is
    tested as a whole: do more images go along it than are classified as labelled?
    """
    moved = {}
    for index in present:
        row = by_class[index]
        other = row.mistaken_for
        if other is not None and row.n_mistaken > max(row.right, _OFTEN * row.total):
            moved[index] = other
    chains: dict[int, set[int]] = {}
    for index, other in moved.items():
        if other in moved or by_class[other].total == 0:
            joined = chains.get(index, {index}) | chains.get(other, {other})
            for member in joined:
                chains[member] = joined
    found = set()
    for chain in {min(chain): chain for chain in chains.values()}.values():
        along = [index for index in chain if index in moved and moved[index] in chain]
        gone = sum(by_class[index].n_mistaken for index in along)
        right = sum(by_class[index].right for index in along)
        mostly = gone >= _MOSTLY * sum(by_class[index].total for index in along)
        test = stats.binomtest(gone, gone + right, alternative="greater")
        if mostly and test.pvalue < _LEVEL / len(by_class) ** 2:  # of all pairs
            found.update(along)
    return sorted(found)


def _upper_bound(right: int, total: int, level: float) -> float:
    interval = stats.binomtest(right, total, alternative="less").proportion_ci(1 - level, "exact")
    return float(interval.high)


def _lower_bound(right: int, total: int, level: float) -> float:
    test = stats.binomtest(right, total, alternative="greater")
    return float(test.proportion_ci(1 - level, "exact").low)
