"""One step of many white-box searches on one model at once, of fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.reactivation.objective import MiniBatch, Objective
from bdaudit.reactivation.recipes import Step
from bdaudit.reactivation.recording import Recording

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
        why_not: Why the step is not a graph though it was to be one, once that is known.
    """

    objective: Objective
    rules: Sequence[Step]
    deltas: Tensor
    sums: Tensor
    record_after: int | None = None
    why_not: str | None = None
    _taken: int = 0
    _recording: Recording | None = None

    def take(self, batch: MiniBatch, done: Tensor) -> None:
        """Take one step of every search; on a card nothing waits for it.

        Args:
            batch: Mini-batches of the same shapes every time, on the device.
            done: (R,) share of each search done, in [0, 1), float64, on the device.
        """
        if self._taken == self.record_after:
            self._begin_recording(batch, done)
        self._taken += 1
        if self._recording is None:
            self._step(batch, done)
        else:
            self._recording.replay((*batch.tensors, done))

    @property
    def is_recorded(self) -> bool:
        """Whether steps are replayed now."""
        return self._recording is not None

    def _begin_recording(self, batch: MiniBatch, done: Tensor) -> None:
        def step(*inputs: Tensor) -> None:
            self._step(MiniBatch(*inputs[:-1]), inputs[-1])

        try:
            self._recording = Recording.of(
                step, (*batch.tensors, done), state=(self.deltas, self.sums)
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the same step without a graph follows, and raises what is real
            self.why_not = str(error).strip().partition("\n")[0] or type(error).__name__

    def _step(self, batch: MiniBatch, done: Tensor) -> None:
        """Take one step; all shapes are fixed, and the device is not waited for."""
        leaf = self.deltas.detach().requires_grad_()
        losses, won = self.objective.evaluate(leaf, batch)
        (gradients,) = torch.autograd.grad(losses.sum(), leaf)
        n_images = batch.counted.sum(-1)
        usable = losses.detach().isfinite() & gradients.isfinite().flatten(1).all(-1)
        gradients = gradients.masked_fill(~usable[:, None, None, None], 0.0)
        total_loss = (losses.detach() * n_images).masked_fill(~usable, 0.0)
        flat = usable & (gradients == 0).flatten(1).all(-1) & (won < n_images)
        self.sums += torch.stack((total_loss, usable * n_images, won, usable, flat), dim=1)
        moved = [
            rule(leaf.detach()[row : row + 1], gradients[row : row + 1], done[row])
            for row, rule in enumerate(self.rules)
        ]
        self.deltas.copy_(torch.cat(moved))
