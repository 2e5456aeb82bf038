"""The one loop behind every white-box search: many searches on one model, step by step together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from math import ceil

import torch
from torch import Tensor

from bdaudit.errors import BdauditError, NumericsError
from bdaudit.reactivation.config import WhiteboxConfig
from bdaudit.reactivation.objective import CraftSet, MiniBatch, Objective, memory_layout
from bdaudit.reactivation.recipes import RECIPES
from bdaudit.reactivation.stepping import N_SUMS, Stepper

__all__ = ["Descent", "descend"]

_WARM_UP = 3
"""Steps of a new shape that are taken before one is recorded, in which libraries choose kernels."""


@dataclass(slots=True, eq=False)
class Descent:
    """One search and what it has seen so far.

    Attributes:
        craft: The images it is made on.
        config: Its settings.
        generator: Deals out its mini-batches.
        delta: (1, C, H, W), where the search starts, and where it stands once it has ended.
        loss_trace: Mean loss of each pass, measured on the way (delta moves meanwhile).
        success: Share of images won during the last pass, on the way.
        images: Craft images evaluated so far.
        steps: Steps taken.
        passes: Passes done.
        unusable_steps: Steps skipped for a loss or gradient that was not finite.
        flat_steps: Steps with a gradient of exactly zero though images were still to win.
        error: Why it ended before its time, where it did.
    """

    craft: CraftSet
    config: WhiteboxConfig
    generator: torch.Generator
    delta: Tensor
    loss_trace: list[float] = field(default_factory=list)
    success: float = 0.0
    images: int = 0
    steps: int = 0
    passes: int = 0
    unusable_steps: int = 0
    flat_steps: int = 0
    error: BdauditError | None = None

    @property
    def passes_without_gain(self) -> int:
        """How many passes ago the mean loss was lowest."""
        lowest = min(range(len(self.loss_trace)), key=self.loss_trace.__getitem__)
        return len(self.loss_trace) - 1 - lowest

    @property
    def n_batches(self) -> int:
        """Mini-batches in a pass."""
        return ceil(len(self.craft) / self.config.batch_size)

    @property
    def largest_batch(self) -> int:
        """Images in the largest mini-batch."""
        return ceil(len(self.craft) / self.n_batches)

    @property
    def steps_to_pass_end(self) -> int:
        """Steps until the running pass ends."""
        return self.n_batches - self.steps % self.n_batches

    def batches(self) -> Iterator[Tensor]:
        """Yield mini-batches of indices for ever, in a new order whenever the images are used up.

        The images are dealt out evenly, so that no step leans on a small remainder.
        """
        while True:
            order = torch.randperm(len(self.craft), generator=self.generator)
            for indices in order.tensor_split(self.n_batches):
                yield from repeat(indices, RECIPES[self.config.optimizer].steps_per_batch)

    def close_pass(self, n_images: int, sums: Sequence[float], *, only_attacks: bool) -> bool:
        """Take in what one pass has seen; return whether the search has ended.

        Args:
            n_images: Images of the pass.
            sums: As `Stepper.sums` has them.
            only_attacks: Whether nothing is left to gain once every image is won.
        """
        loss, usable_images, won, usable_steps, flat_steps = sums
        self.passes += 1
        self.images += n_images
        self.unusable_steps += self.n_batches - round(usable_steps)
        self.flat_steps += round(flat_steps)
        if self.unusable_steps == self.steps:
            self.error = NumericsError(
                "white box: the loss or its gradient was not finite at every step; look for NaN "
                "or huge values in the weights, or try without bf16"
            )
            return True
        self.success = won / n_images
        if usable_images:
            self.loss_trace.append(loss / usable_images)
        # Where mini-batches are repeated, a pass does not meet every image.
        met_all = RECIPES[self.config.optimizer].steps_per_batch == 1
        if only_attacks and met_all and self.success == 1.0:
            return True
        patience = self.config.patience
        if patience is not None and self.passes_without_gain >= patience:
            return True
        return self.passes == self.config.n_passes


@dataclass(slots=True, eq=False)
class _Row:
    """A descent in its row of the batch."""

    descent: Descent
    batches: Iterator[Tensor]
    n_images: int = 0
    ended: bool = False

    @property
    def config(self) -> WhiteboxConfig:
        return self.descent.config

    @classmethod
    def of(cls, descent: Descent) -> _Row:
        return cls(descent, descent.batches())


Ended = Callable[[Descent], Descent | None]
"""Told of a descent that has ended; gives the one that goes on in its place, or `None`."""


def descend(
    descents: Sequence[Descent],
    objective: Objective,
    ended: Ended,
    *,
    record: bool = False,
    noted: Callable[[str], None] = lambda why: None,
) -> Iterator[None]:
    """Lower `objective` from where each descent starts, all on one model; yields between passes.

    A descent takes the steps that it would take alone, of the same mini-batches: the others
    change its figures by rounding only.

    Args:
        descents: Alike in optimiser and in the shape of their images.
        objective: Of the model.
        ended: Told of each that ends; in its `error` stands why, where that was too early. What
            it gives must have the same craft images and settings.
        record: Whether to replay steps as a CUDA graph, which works on a card only.
        noted: Told why they are not replayed, where that was tried.
    """
    rows = [_Row.of(descent) for descent in descents]
    deltas = torch.cat([descent.delta for descent in descents])
    sums = torch.zeros(len(rows), N_SUMS, device=deltas.device)
    # A first pass may win everything, and then nothing is left to replay.
    warm_up = max(_WARM_UP, *(descent.n_batches for descent in descents))
    while rows:
        stepper = Stepper(
            objective,
            [RECIPES[row.config.optimizer].make_step(row.config.ball) for row in rows],
            deltas=deltas,
            sums=sums,
            record_after=warm_up if record else None,
        )
        while not _too_few(rows, stepper):
            _take_to_pass_end(rows, stepper)
            _close_passes(rows, stepper, ended, only_attacks=objective.only_attacks)
            yield
        if stepper.why_not is not None:
            record = False
            noted(stepper.why_not)
        going_on = [number for number, row in enumerate(rows) if not row.ended]
        rows = [rows[number] for number in going_on]
        deltas, sums = stepper.deltas[going_on], stepper.sums[going_on]
        warm_up = _WARM_UP


def _close_passes(rows: list[_Row], stepper: Stepper, ended: Ended, *, only_attacks: bool) -> None:
    """Take in what the passes that end here have seen; a search that ends gives up its row."""
    seen = stepper.sums.tolist()  # the only place where a card is waited for
    for number, row in enumerate(rows):
        if row.ended or row.descent.steps % row.descent.n_batches:
            continue
        over = row.descent.close_pass(row.n_images, seen[number], only_attacks=only_attacks)
        row.n_images = 0
        stepper.sums[number].zero_()
        if over:
            row.descent.delta = stepper.deltas[number : number + 1].clone()
            following = ended(row.descent)
            if following is None:
                row.ended = True
            else:
                rows[number] = _Row.of(following)
                stepper.deltas[number].copy_(following.delta[0])


def _too_few(rows: Sequence[_Row], stepper: Stepper) -> bool:
    """Return whether so many have ended that a smaller batch pays.

    Where steps are replayed, which keep their shape, that is when half of them have.
    """
    running = sum(not row.ended for row in rows)
    if not stepper.may_replay:
        return running < len(rows)
    return running <= len(rows) // 2


def _take_to_pass_end(rows: Sequence[_Row], stepper: Stepper) -> None:
    """Take steps until a pass ends, all dealt out before, so that no step waits for Python."""
    running = [row.descent for row in rows if not row.ended]
    n_steps = min(descent.steps_to_pass_end for descent in running)
    width = max(row.descent.largest_batch for row in rows)
    indices = torch.zeros(n_steps, len(rows), width, dtype=torch.int64)
    sizes = torch.zeros(n_steps, len(rows), 1, dtype=torch.int64)
    done = torch.zeros(n_steps, len(rows), dtype=torch.float64)
    for number, row in enumerate(rows):
        if row.ended:
            continue
        descent = row.descent
        total = descent.config.n_passes * descent.n_batches
        for step in range(n_steps):
            chosen = next(row.batches)
            indices[step, number] = chosen[0]  # fills the row up; what fills up does not count
            indices[step, number, : len(chosen)] = chosen
            sizes[step, number] = len(chosen)
            done[step, number] = descent.steps / total
            descent.steps += 1
            row.n_images += len(chosen)
    counted = torch.arange(width) < sizes
    device = stepper.deltas.device
    indices, counted, done = (tensor.to(device) for tensor in (indices, counted, done))
    crafts = [row.descent.craft for row in rows]
    for step in range(n_steps):
        stepper.take(_gather(crafts, indices[step], counted[step]), done[step])


def _gather(crafts: Sequence[CraftSet], indices: Tensor, counted: Tensor) -> MiniBatch:
    """Return the images of indices (R, B), row by row each of its own set."""
    # Rows of one set, as the same attack at several eps, are taken in one go.
    runs = [[row for row, _ in run] for _, run in groupby(enumerate(crafts), lambda r: id(r[1]))]

    def rows_of(name: str) -> Tensor:
        parts = [
            getattr(crafts[run[0]], name).index_select(0, indices[run[0] : run[-1] + 1].flatten())
            for run in runs
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    layout = memory_layout(crafts[0].images)
    specific = crafts[0].clean is not None
    return MiniBatch(
        images=rows_of("images").contiguous(memory_format=layout),
        targets=rows_of("targets").view_as(indices),
        counted=counted,
        clean=rows_of("clean").contiguous(memory_format=layout) if specific else None,
        labels=rows_of("labels").view_as(indices) if specific else None,
    )
