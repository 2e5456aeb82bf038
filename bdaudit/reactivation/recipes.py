"""Named ways to descend: which loss, from where, and what one step does.

A recipe holds everything in which two white-box searches differ; the loop that runs them is one
and the same (`whitebox.py`), so comparing two recipes compares only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bdaudit.perturbation import Ball, boosted_cross_entropy, smoothed_failure
from bdaudit.reactivation.objective import CountedLoss

__all__ = ["RECIPES", "OptimizerName", "Recipe", "Step"]

OptimizerName = Literal["default", "research"]

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Delta, gradient of the loss to be lowered, share of the search done in [0, 1) -> next delta.

All on one device; the share is a float64 tensor of no dimensions, so that a step can be recorded
once and replayed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one white-box search descends.

    Attributes:
        loss: What is lowered, averaged over the images of a mini-batch.
        steps_per_batch: Steps taken in a row on the same mini-batch.
        start: Draws the first delta (1, C, H, W) on the CPU.
        make_step: Builds the step rule of a search in a ball; it remembers no earlier step.
    """

    loss: CountedLoss
    steps_per_batch: int
    start: Callable[[Sequence[int], Ball, torch.Generator], Tensor]
    make_step: Callable[[Ball], Step]


def _sign_descent(ball: Ball) -> Step:
    """Steepest descent in the ball's norm, the step shrinking linearly from eps to 0.

    Under the L-inf norm the step is the gradient's sign (Goodfellow et al., ICLR 2015), under L2
    the normalised gradient, so its length is known beforehand whatever the scale of the loss, and
    a schedule relative to eps fits every model and radius.
    """

    def step(delta: Tensor, gradient: Tensor, done: Tensor) -> Tensor:
        length = ball.eps * (1.0 - done)
        return ball.project(delta - length * ball.ascent(gradient))

    return step


def _projected_sgd(ball: Ball) -> Step:
    """Plain projected gradient descent with the research script's learning rate."""
    learning_rate = 0.05

    def step(delta: Tensor, gradient: Tensor, done: Tensor) -> Tensor:
        return ball.project(delta - learning_rate * gradient)

    return step


def _random_start(shape: Sequence[int], ball: Ball, generator: torch.Generator) -> Tensor:
    return ball.random_point(shape, generator)


def _boosted(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    return boosted_cross_entropy(logits, targets)


RECIPES: dict[OptimizerName, Recipe] = {
    "default": Recipe(
        loss=smoothed_failure,
        steps_per_batch=1,
        start=_random_start,
        make_step=_sign_descent,
    ),
    "research": Recipe(
        loss=_boosted,
        steps_per_batch=5,
        start=_random_start,
        make_step=_projected_sgd,
    ),
}
"""`default` is measured against `research` in docs/reactivation-evidence.md."""
