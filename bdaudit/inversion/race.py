"""The race: all targets start, on the original and on innocent models; the hopeless drop out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.anomaly import residuals

__all__ = ["Race", "Search", "run_race"]


class Search(Protocol):
    """A search for triggers toward many targets at once, on one model, in stages."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def n_stages(self) -> int:
        """Stages until the end."""

    @property
    def first_drop(self) -> int:
        """Stage after which arms may be dropped; earlier, they have not come apart yet."""

    def advance(self, stage: int, active: Sequence[int], generator: torch.Generator) -> None:
        """Go through one stage with the arms in `active`."""

    def sizes(self, stage: int) -> Tensor:
        """Return log2 of the size each arm (n,) needs, as known after `stage`."""

    def standings(self, stage: int) -> Tensor:
        """Return what to drop arms by (n,): the sizes, with ties of an early stage told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Race:
    """How far every arm came.

    Attributes:
        sizes: (M, n) log2 of the size each arm needs on each model, the original first. Of an arm
            that was dropped, as known when it was.
        dropped_after: For each arm the stage after which it was dropped, `None` for those that
            went all the way.
    """

    sizes: Tensor
    dropped_after: tuple[int | None, ...]

    @property
    def finished(self) -> list[int]:
        """Arms that went all the way."""
        return [k for k, stage in enumerate(self.dropped_after) if stage is None]


def run_race(
    searches: Sequence[Search],
    *,
    n_arms: int,
    min_arms: int,
    seed: int,
    title: str,
    always: Sequence[int] = (),
) -> Steps[Race]:
    """Run the same search on all models, stage by stage.

    After each stage from `first_drop` on but the last, half of the arms that are still in are
    dropped while more than `min_arms` are: those whose size on the original falls least short of
    the innocent models' own for that arm. An arm takes part on all models or on none, so that
    sizes can be compared.

    Args:
        searches: One a model, the original's first.
        n_arms: Arms, n.
        min_arms: Number up to which none is dropped. That many are needed anyhow to judge how much
            classes differ by chance.
        seed: All models meet the same random draws.
        title: What `Progress` calls the step.
        always: Arms that are never dropped.

    Source: successive halving, Jamieson and Talwalkar, AISTATS 2016; dropping hopeless labels early
    in trigger inversion is from Shen et al. (K-Arm), ICML 2021, there by a bandit on one model.
    """
    n_stages = searches[0].n_stages
    active = list(range(n_arms))
    dropped_after: list[int | None] = [None] * n_arms
    sizes = torch.full((len(searches), n_arms), float("nan"))
    standings = sizes.clone()
    for stage in range(n_stages):
        for number, search in enumerate(searches):
            yield Progress(title, stage * len(searches) + number, n_stages * len(searches))
            search.advance(stage, active, torch.Generator().manual_seed(seed + stage))
            sizes[number, active] = search.sizes(stage)[active]
            standings[number, active] = search.standings(stage)[active]
        telling = stage >= searches[0].first_drop
        if telling and len(active) > min_arms and stage + 1 < n_stages:
            gains = residuals(standings[:, active])
            gains[[arm in always for arm in active]] = float("inf")
            order = gains.argsort(descending=True, stable=True)
            keep = max(min_arms, -(-len(active) // 2))
            for place in order[keep:].tolist():
                dropped_after[active[place]] = stage
            active = sorted(active[place] for place in order[:keep].tolist())
    yield Progress(title, 1, 1)
    return Race(sizes, tuple(dropped_after))
