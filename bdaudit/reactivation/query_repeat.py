"""Does the model give the same answer to the same image?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_search import success_flags

__all__ = ["RepeatSearch"]

# Two runs of one model on one machine differ by rounding only.
_TOLERANCE = 1e-3


class RepeatSearch:
    """Ask about a few craft images, then about the same in the opposite order.

    Args:
        craft: Images and targets, on the CPU.
        start: (1, C, H, W), what the search will start from; unchanged by this part.
        n_images: How many images to ask about twice.
    """

    name = "repeated images"

    def __init__(self, craft: CraftSet, start: Tensor, *, n_images: int) -> None:
        self._images = craft.images[:n_images]
        self._targets = craft.targets[:n_images]
        self._start = start
        self._first: Tensor | None = None
        self._done = False
        self.changed = False

    @property
    def delta(self) -> Tensor:
        """What the search will start from."""
        return self._start

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Nothing is tried here."""
        return 0, 0

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Show the images, then the same from last to first."""
        if self._done or limit < len(self._images):
            return self._images[:0]
        return self._images if self._first is None else self._images.flip(0)

    def absorb(self, answers: Tensor) -> float:
        """Keep the first answers, compare the second with them."""
        targets = self._targets
        if self._first is None:
            self._first = answers
        else:
            answers = answers.flip(0)
            self._done = True
            self.changed = not torch.allclose(
                answers.double(), self._first.double(), rtol=_TOLERANCE, atol=_TOLERANCE
            )
        return float(success_flags(answers, targets).double().mean())

    def memory(self) -> dict[str, Tensor]:
        """Return the first answers."""
        memory = {"done": torch.tensor(self._done)}
        return memory if self._first is None else memory | {"first": self._first}

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""
        self._first = memory.get("first")
        self._done = bool(memory["done"])
