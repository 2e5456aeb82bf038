"""The one loop behind every white-box search."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat
from math import ceil

import torch
from torch import Tensor

from bdaudit.errors import NumericsError
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.objective import CraftSet, Objective
from bdaudit.reactivation.recipes import RECIPES

__all__ = ["Descent", "descend"]


@dataclass(slots=True, eq=False)
class Descent:
    """One search and what it has seen so far.

    Attributes:
        delta: (1, C, H, W), where the search stands.
        loss_trace: Mean loss of each pass, measured on the way (delta moves meanwhile).
        success: Share of images won during the last pass, on the way.
        images: Craft images evaluated so far.
        steps: Steps taken.
        unusable_steps: Steps skipped for a loss or gradient that was not finite.
        flat_steps: Steps with a gradient of exactly zero though images were still to win.
    """

    delta: Tensor
    loss_trace: list[float] = field(default_factory=list)
    success: float = 0.0
    images: int = 0
    steps: int = 0
    unusable_steps: int = 0
    flat_steps: int = 0

    @property
    def passes_without_gain(self) -> int:
        """How many passes ago the mean loss was lowest."""
        lowest = min(range(len(self.loss_trace)), key=self.loss_trace.__getitem__)
        return len(self.loss_trace) - 1 - lowest

    def close_pass(self, sums: _Sums) -> None:
        """Take in what one pass has seen; the only place where a GPU is waited for."""
        loss, usable_images, won, usable_steps, flat_steps = sums.on_device.tolist()
        self.images += sums.images
        self.steps += sums.steps
        self.unusable_steps += sums.steps - round(usable_steps)
        self.flat_steps += round(flat_steps)
        if self.unusable_steps == self.steps:
            raise NumericsError(
                "white box: the loss or its gradient was not finite at every step; look for NaN "
                "or huge values in the weights, or try without bf16"
            )
        self.success = won / sums.images
        if usable_images:
            self.loss_trace.append(loss / usable_images)


class _Sums:
    """Sums over one pass, kept on the device so that no step waits for Python to read them."""

    def __init__(self, device: torch.device) -> None:
        # Loss, usable images, images won, usable steps, flat steps.
        self.on_device = torch.zeros(5, device=device)
        self.images = 0
        self.steps = 0

    def add(self, loss: Tensor, won: Tensor, usable: Tensor, gradient: Tensor, n: int) -> None:
        total_loss = torch.where(usable, loss.detach() * n, 0.0)
        flat = usable & (gradient == 0).all() & (won < n)
        self.on_device += torch.stack((total_loss, usable * n, won, usable, flat))
        self.images += n
        self.steps += 1


def descend(
    descent: Descent,
    objective: Objective,
    craft: CraftSet,
    config: WhiteboxConfig,
    generator: torch.Generator,
) -> Generator[int, None, None]:
    """Lower `objective` from `descent.delta` on, and yield the number of passes done after each.

    Raises:
        NumericsError: Not one step so far had a finite loss and gradient.
    """
    recipe = RECIPES[config.optimizer]
    step = recipe.make_step(config.ball)
    n_batches = ceil(len(craft) / config.batch_size)
    device = craft.images.device
    batches = _batches(len(craft), n_batches, recipe.steps_per_batch, generator, device)
    n_steps = config.n_passes * n_batches
    for n_passes in range(1, config.n_passes + 1):
        sums = _Sums(device)
        for indices in islice(batches, n_batches):
            leaf = descent.delta.detach().requires_grad_()
            loss, won = objective.evaluate(leaf, indices)
            (gradient,) = torch.autograd.grad(loss, leaf)
            usable = loss.isfinite() & gradient.isfinite().all()
            gradient = torch.where(usable, gradient, 0.0)
            sums.add(loss, won, usable, gradient, len(indices))
            done = (descent.steps + sums.steps - 1) / n_steps
            descent.delta = step(leaf.detach(), gradient, done)
        descent.close_pass(sums)
        yield n_passes
        # Where mini-batches are repeated, a pass does not meet every image.
        met_all = recipe.steps_per_batch == 1
        if objective.only_attacks and met_all and descent.success == 1.0:
            return
        if config.patience is not None and descent.passes_without_gain >= config.patience:
            return


def _batches(
    n_images: int,
    n_batches: int,
    steps_per_batch: int,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield mini-batches of indices for ever, in a new order whenever the images are used up.

    The images are dealt out evenly, so that no step leans on a small remainder.
    """
    while True:
        order = torch.randperm(n_images, generator=generator).to(device)
        for indices in order.tensor_split(n_batches):
            yield from repeat(indices, steps_per_batch)
