"""One step of many white-box searches on one model at once, of fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bdaudit.foundation.recording import Replayed
from bdaudit.reactivation.objective import MiniBatch, Objective
from bdaudit.reactivation.recipes import Step

__all__ = ["N_SUMS", "Stepper", "TakeStep"]

N_SUMS = 5
"""Sums kept of every pass: loss, images of usable steps, images won, usable and flat steps."""

TakeStep = Callable[[MiniBatch, Tensor], None]
"""A mini-batch and the share of each search done (R,) in float64; moves deltas and sums."""


@dataclass(slots=True, eq=False)
class Stepper:
    """Takes steps of R searches, and keeps on the device what they come to.

    Attributes:
        objective: What is lowered.
        rules: The step rule of each search.
        deltas: (R, C, H, W), where each search stands; moved in place.
        sums: (R, `N_SUMS`) of the pass each search is in; added to in place.
        record_after: Steps after which one is recorded as a CUDA graph; libraries choose and load
            what they need in those before. `None` records none.
    """

    objective: Objective
    rules: Sequence[Step]
    deltas: Tensor
    sums: Tensor
    record_after: int | None = None
    _replayed: Replayed = field(init=False)

    def __post_init__(self) -> None:
        objective, rules, deltas, sums = self.objective, self.rules, self.deltas, self.sums

        # Nothing here leads back to this object, so that the memory of a graph goes with it.
        def step(*inputs: Tensor) -> None:
            _take(objective, rules, deltas, sums, MiniBatch(*inputs[:-1]), inputs[-1])

        self._replayed = Replayed(
            step,
            state=lambda: (deltas, sums),
            # Deltas move by signs, which turn where a gradient is near zero.
            judged=lambda: ((sums,),),
            after=self.record_after,
            must_fit=True,
        )

    def take(self, batch: MiniBatch, done: Tensor) -> None:
        """Take one step of every search; on a card nothing waits for it.

        Args:
            batch: Mini-batches of the same shapes every time, on the device.
            done: (R,) share of each search done, in [0, 1), float64, on the device.
        """
        self._replayed(*batch.tensors, done)

    @property
    def may_replay(self) -> bool:
        """Whether steps are, or are still to be, replayed."""
        return self._replayed.may_replay

    @property
    def why_not(self) -> str | None:
        """Why the step is not a graph though it was to be one, once that is known."""
        return self._replayed.why_not


def _take(
    objective: Objective,
    rules: Sequence[Step],
    deltas: Tensor,
    sums: Tensor,
    batch: MiniBatch,
    done: Tensor,
) -> None:
    """Take one step; all shapes are fixed, and the device is not waited for."""
    leaf = deltas.detach().requires_grad_()
    losses, won = objective.evaluate(leaf, batch)
    (gradients,) = torch.autograd.grad(losses.sum(), leaf)
    n_images = batch.counted.sum(-1)
    usable = losses.detach().isfinite() & gradients.isfinite().flatten(1).all(-1)
    gradients = gradients.masked_fill(~usable[:, None, None, None], 0.0)
    total_loss = (losses.detach() * n_images).masked_fill(~usable, 0.0)
    flat = usable & (gradients == 0).flatten(1).all(-1) & (won < n_images)
    sums += torch.stack((total_loss, usable * n_images, won, usable, flat), dim=1)
    moved = [
        rule(leaf.detach()[row : row + 1], gradients[row : row + 1], done[row])
        for row, rule in enumerate(rules)
    ]
    deltas.copy_(torch.cat(moved))
