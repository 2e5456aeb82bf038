"""The obvious ways to decide, on the same models as the verdict.

A reader of the papers would call a model dormant when its BEC is high, or when the trigger with a
perturbation of the papers' size takes many images to the target. Here they get the threshold that
suits them best, which nobody could have known beforehand: on the very models they are judged on,
or, where limits were calibrated, on the half those were chosen on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from bdaudit.benchmarking.confusion import outcome_of, share_of
from bdaudit.benchmarking.curves import NEGATIVE, POSITIVE
from bdaudit.records import Mode, Rate
from bdaudit.records.benchmark import BenchCase, Recipe

__all__ = ["compare_recipes"]

PAPER_EPS = 0.05
"""L-inf radius of the re-activation attacks of Zhu et al., NeurIPS 2024."""

_PAPER_MODE: Mode = "white"
_FIXED = 0.5


def compare_recipes(
    cases: Sequence[BenchCase], *, chosen_on: Sequence[BenchCase] | None = None
) -> tuple[Recipe, ...]:
    """Let every recipe decide `cases`.

    Args:
        cases: All of one variant.
        chosen_on: Where the best thresholds are looked for; `cases` themselves by default, which
            flatters them.
    """
    halves: Halves = "all" if chosen_on is None else "report"
    told = [case for case in cases if case.outcome and case.truth in POSITIVE | NEGATIVE]
    known = [case for case in chosen_on or cases if case.truth in POSITIVE | NEGATIVE]
    recipes = [
        Recipe(
            name="verdict of bdaudit",
            threshold=None,
            caught=_share(told, POSITIVE, lambda case: case.outcome == "dormant"),
            false_alarms=_share(told, NEGATIVE, lambda case: case.outcome in ("dormant", "active")),
            undecided=share_of(told, lambda case: outcome_of(case) == "inconclusive"),
            cases=halves,
        )
    ]
    largest = max(
        (p.eps for case in told for p in case.points if p.mode == _PAPER_MODE), default=None
    )
    figures: list[tuple[str, Reader]] = [("BEC", lambda case: case.bec)]
    if largest is not None:
        eps = PAPER_EPS if _has(told, PAPER_EPS) else largest
        name = f"re-activated ASR at eps {eps:g}"
        figures.append((name, lambda case: case.figure("asr", _PAPER_MODE, eps)))
    for name, read in figures:
        best = _best_threshold(known, read)
        for threshold, how in ((_FIXED, f"above {_FIXED:g}"), (best, "above the best threshold")):
            if threshold is not None:
                recipes.append(_recipe(f"{name} {how}", threshold, told, read, halves))
    return tuple(recipes)


Halves = Literal["all", "report"]
Reader = Callable[[BenchCase], float | None]


def _has(cases: Sequence[BenchCase], eps: float) -> bool:
    return any(p.mode == _PAPER_MODE and p.eps == eps for case in cases for p in case.points)


def _recipe(
    name: str, threshold: float, cases: Sequence[BenchCase], read: Reader, halves: Halves
) -> Recipe:
    told = [case for case in cases if read(case) is not None]

    def above(case: BenchCase) -> bool:
        value = read(case)
        return value is not None and value > threshold

    return Recipe(
        name=name,
        threshold=threshold,
        caught=_share(told, POSITIVE, above),
        false_alarms=_share(told, NEGATIVE, above),
        cases=halves,
    )


def _share(
    cases: Sequence[BenchCase], truths: frozenset[str], happened: Callable[[BenchCase], bool]
) -> Rate | None:
    return share_of([case for case in cases if case.truth in truths], happened)


def _best_threshold(cases: Sequence[BenchCase], read: Reader) -> float | None:
    """Return the threshold with the most caught less false alarms (Youden's J)."""
    positive = [v for case in cases if case.truth in POSITIVE and (v := read(case)) is not None]
    negative = [v for case in cases if case.truth in NEGATIVE and (v := read(case)) is not None]
    if not positive or not negative:
        return None

    def gain(threshold: float) -> float:
        caught = sum(v > threshold for v in positive) / len(positive)
        return caught - sum(v > threshold for v in negative) / len(negative)

    values = sorted({*positive, *negative})
    between = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    return max([values[0] - 1e-9, *between], key=gain)
