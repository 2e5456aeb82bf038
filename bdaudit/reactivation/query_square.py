"""The universal Square search of the paper's script, kept for comparison.

Source: Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
random search", ECCV 2020, made universal by Zhu, Liang, Wu, NeurIPS 2024: one square is drawn for
all images, and it is kept when the loss of the whole craft batch falls. We count every image as a
query (the script counts the whole batch as one), and sum the losses in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt

import torch
from torch import Tensor

from bdaudit.perturbation import Ball, L2Ball, apply_delta, cross_entropy
from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_search import success_flags

__all__ = ["SquareSearch", "square_side"]

_FIRST_SHARE = 0.8
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class SquareSearch:
    """Random squares, judged on all craft images at once.

    Under the L2 norm the new square is added to delta and the sum brought back to length eps: the
    original moves length from one window to another, which for one delta and many images comes to
    the same.

    Args:
        craft: Images and targets, on the CPU.
        ball: Where delta is kept.
        start: (1, C, H, W); `None` starts from the original's vertical stripes.
    """

    name = "universal Square search"

    def __init__(self, craft: CraftSet, ball: Ball, start: Tensor | None) -> None:
        self._craft = craft
        self._ball = ball
        self._delta = torch.zeros_like(craft.images[:1]) if start is None else start
        self._candidate = self._delta
        self._striped = start is not None
        self._loss = inf
        self._tried = 0
        self._accepted = 0

    @property
    def delta(self) -> Tensor:
        """The last perturbation accepted."""
        return self._delta

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Squares tried and accepted, the start among them."""
        return self._tried, self._accepted

    @property
    def gained(self) -> bool:
        """Whether any square was accepted after the start."""
        return self._accepted > 1

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Show every craft image with one random square changed, or nothing when too few remain."""
        if limit < len(self._craft):
            return self._craft.images[:0]
        if self._tried > 0:
            self._candidate = self._with_square(generator)
        elif not self._striped:
            self._candidate = self._stripes(generator)
        return apply_delta(self._craft.images, self._candidate)

    def absorb(self, answers: Tensor) -> float:
        """Keep the candidate when the summed loss fell."""
        loss = float(_losses(answers, self._craft.targets).sum())
        self._tried += 1
        if loss < self._loss:
            self._loss, self._delta = loss, self._candidate
            self._accepted += 1
        return float(success_flags(answers, self._craft.targets).double().mean())

    def memory(self) -> dict[str, Tensor]:
        """Return delta, its loss and the counts."""
        return {
            "delta": self._delta,
            "loss": torch.tensor(self._loss, dtype=torch.float64),
            "counts": torch.tensor((self._tried, self._accepted)),
        }

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""
        self._delta = memory["delta"]
        self._loss = float(memory["loss"])
        self._tried, self._accepted = memory["counts"].tolist()

    def _stripes(self, generator: torch.Generator) -> Tensor:
        _, channels, _, width = self._delta.shape
        signs = _signs((1, channels, 1, width), generator)
        return self._to_surface(signs.expand_as(self._delta))

    def _with_square(self, generator: torch.Generator) -> Tensor:
        _, channels, height, width = self._delta.shape
        side = square_side(self._tried, height, width)
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        signs = _signs((1, channels, 1, 1), generator)
        candidate = self._delta.clone()
        window = candidate[:, :, top : top + side, left : left + side]
        if isinstance(self._ball, L2Ball):
            # As large a change, root mean square over the window, as the whole of delta has there.
            window += signs * self._ball.eps / self._delta[0].numel() ** 0.5
            return self._to_surface(candidate)
        window[:] = signs * self._ball.eps
        return self._ball.project(candidate)

    def _to_surface(self, direction: Tensor) -> Tensor:
        return self._ball.project(self._ball.eps * direction / self._ball.norm(direction))


def square_side(n_tried: int, height: int, width: int) -> int:
    """Return the side of the square to be tried next, in pixels: smaller as the search goes on."""
    n_halvings = sum(n_tried > limit for limit in _HALVED_AFTER)
    side = round(sqrt(_FIRST_SHARE * 0.5**n_halvings * height * width))
    return max(1, min(side, height, width))


def _losses(answers: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of every answer (n,), float64: cross-entropy, or failures for labels."""
    if answers.ndim == 1:
        return (answers != targets).double()
    return cross_entropy(answers.double(), targets)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, shape, generator=generator) - 1).float()
