"""The last word of a query search: which of a few finished perturbations is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

import torch
from torch import Tensor

from bdaudit.perturbation import apply_delta, cross_entropy
from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_search import success_flags

__all__ = ["RaceSearch", "sign_test"]

_SURELY_WORSE = 0.01


class RaceSearch:
    """Ask about all remaining perturbations on the same craft images, and drop those surely worse.

    Common images take the differences between images out of the comparison; what is left is a
    sign test on the images where two perturbations disagree (McNemar). Small counts cannot
    eliminate by luck: a racer falls when the leader beats it with p below 0.01, and otherwise
    both run on until the craft images are used up (Maron and Moore, "Hoeffding races", 1994).

    Args:
        craft: Images and targets, on the CPU.
        racers: Perturbations (1, C, H, W). Of equally many successes the lower cross-entropy
            wins, where there are scores, and then the earliest; where nothing could be asked the
            last, on which most was spent.
        batch_size: Most images a question.
    """

    name = "race of finalists"

    def __init__(self, craft: CraftSet, racers: Sequence[Tensor], *, batch_size: int) -> None:
        self._craft = craft
        self._racers = tuple(racers)
        self._batch_size = batch_size
        self._running = list(range(len(self._racers)))
        self._order = torch.empty(0, dtype=torch.int64)
        self._flags = torch.zeros(len(self._racers), 0, dtype=torch.bool)
        self._losses = torch.zeros(len(self._racers), dtype=torch.float64)

    @property
    def delta(self) -> Tensor:
        """The leader."""
        return self._racers[self._leader()]

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Racers and those still running."""
        return len(self._racers), len(self._running)

    @property
    def success(self) -> tuple[int, int] | None:
        """Craft images the leader took to their targets, of those asked about."""
        n_images = self._flags.shape[1]
        return (int(self._flags[self._leader()].sum()), n_images) if n_images else None

    @property
    def gained(self) -> bool:
        """Whether the leader is better than the first racer, or nothing is known of either."""
        return self._leader() != 0

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Show the next craft images with each of the racers still running."""
        if len(self._order) == 0:
            self._order = torch.randperm(len(self._craft), generator=generator)
        n_images = min(limit, self._batch_size) // len(self._running)
        chosen = self._next(n_images)
        if len(chosen) == 0:
            return self._craft.images[:0]
        shown = [apply_delta(self._craft.images[chosen], self._racers[k]) for k in self._running]
        return torch.cat(shown)

    def absorb(self, answers: Tensor) -> float:
        """Count, and drop the racers that are surely worse than the leader."""
        chosen = self._next(len(answers) // len(self._running))
        targets = self._craft.targets[chosen].repeat(len(self._running))
        flags = success_flags(answers, targets)
        # A racer that has dropped out counts as failing: it is behind already.
        latest = torch.zeros(len(self._racers), len(chosen), dtype=torch.bool)
        latest[self._running] = flags.view(len(self._running), -1)
        self._flags = torch.cat((self._flags, latest), dim=1)
        if answers.ndim == 2:
            losses = cross_entropy(answers.double(), targets)
            self._losses[self._running] += losses.view(len(self._running), -1).sum(1)
        leader = self._leader()
        self._running = [
            k
            for k in self._running
            if k == leader or _p_worse(self._flags[k], self._flags[leader]) >= _SURELY_WORSE
        ]
        return float(self._flags[leader].double().mean())

    def memory(self) -> dict[str, Tensor]:
        """Return who is running and all outcomes."""
        return {
            "running": torch.tensor(self._running),
            "order": self._order,
            "flags": self._flags.to(torch.uint8),
            "losses": self._losses.clone(),
        }

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""
        self._running = memory["running"].tolist()
        self._order = memory["order"]
        self._flags = memory["flags"].bool()
        self._losses = memory["losses"].clone()

    def _next(self, n_images: int) -> Tensor:
        """Return the next craft indices in the order drawn, at most `n_images`."""
        done = self._flags.shape[1]
        return self._order[done : done + n_images]

    def _leader(self) -> int:
        if self._flags.shape[1] == 0:
            return len(self._racers) - 1
        n_won, losses = self._flags.sum(1).tolist(), self._losses.tolist()
        return max(self._running, key=lambda k: (n_won[k], -losses[k], -k))


def _p_worse(racer: Tensor, leader: Tensor) -> float:
    """Return how likely the leader's advantage would be by luck."""
    return sign_test(int((leader & ~racer).sum()), int((racer & ~leader).sum()))


def sign_test(n_for: int, n_against: int) -> float:
    """Return P(at least `n_for` heads) in n_for + n_against fair tosses: McNemar's exact test.

    Args:
        n_for: Images that only the first of two perturbations takes to their target.
        n_against: Images that only the second does.
    """
    n = n_for + n_against
    return sum(comb(n, k) for k in range(n_for, n + 1)) / (1 << n)
