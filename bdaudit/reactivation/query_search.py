"""What the parts of a query search have in common.

A part proposes images to ask about, is told the answers, and remembers what it needs. All the
work lies in `propose`; `absorb` is cheap, so that the memory written right after an answer was
paid for already holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bdaudit.perturbation import Loss, smoothed_failure

__all__ = ["Feedback", "QuerySearch", "failures", "success_flags"]

Feedback = Loss
"""Answers, scores (n, K) or labels (n,), and targets (n,) to losses (n,), lower is better."""


class QuerySearch(Protocol):
    """One part of a query search."""

    @property
    def name(self) -> str:
        """What is being done, in words for a person."""

    @property
    def delta(self) -> Tensor:
        """The best perturbation (1, C, H, W) so far, on the CPU, inside the ball."""

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Candidates put to a test so far, and those that passed it."""

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Choose what to ask next.

        Args:
            limit: Most images that may be asked about.
            generator: The only source of randomness.

        Returns:
            Images (n, C, H, W) in [0, 1] with n of at most `limit`; none when this part is done.
        """

    def absorb(self, answers: Tensor) -> float:
        """Take in the answers to what was just proposed.

        Args:
            answers: Scores (n, K) or labels (n,), on the CPU.

        Returns:
            Share of the images that were classified as their target.
        """

    def memory(self) -> dict[str, Tensor]:
        """Return everything that the next proposal depends on, beside the generator."""

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""


def success_flags(answers: Tensor, targets: Tensor) -> Tensor:
    """Return which answers, scores (n, K) or labels (n,), are their targets (n,): booleans."""
    return (answers if answers.ndim == 1 else answers.argmax(dim=1)) == targets


def failures(answers: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of every answer (n,), float64 in [0, 1].

    Scores give a smooth count of failures (`smoothed_failure`, which is unmoved by their scale);
    its temperature depends on the batch, so only losses of one batch can be compared. Labels give
    the count itself.
    """
    if answers.ndim == 1:
        return (answers != targets).double()
    return smoothed_failure(answers.double(), targets)
