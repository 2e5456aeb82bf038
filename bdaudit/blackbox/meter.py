"""A query budget, counted in images and never exceeded by one."""

from __future__ import annotations

from torch import Tensor

from bdaudit.blackbox.base import BlackBox
from bdaudit.errors import BudgetError, ConfigError

__all__ = ["Meter"]


class Meter:
    """One purpose's share of the questions put to a black box.

    A search and its held-out scoring each have their own meter over the same black box, so that a
    report can say what either cost.

    Args:
        black_box: What is asked.
        max_queries: Images that may be answered through this meter; `None` for no limit.
        n_spent: Images already answered, when a search is resumed.

    Raises:
        ConfigError: A count is negative.
    """

    def __init__(
        self, black_box: BlackBox, *, max_queries: int | None = None, n_spent: int = 0
    ) -> None:
        if n_spent < 0 or (max_queries is not None and max_queries < 0):
            raise ConfigError(
                f"max_queries and n_spent: expected 0 or more, got {max_queries} and {n_spent}"
            )
        self.black_box = black_box
        self.max_queries = max_queries
        self.n_spent = n_spent

    @property
    def n_left(self) -> int | None:
        """Images that may still be asked about; `None` for no limit."""
        return None if self.max_queries is None else max(0, self.max_queries - self.n_spent)

    def affordable(self, images: Tensor) -> Tensor:
        """Return as many of the first images (N, C, H, W) as the budget still pays for."""
        return images if self.n_left is None else images[: self.n_left]

    def ask(self, images: Tensor) -> Tensor:
        """Ask about images (N, C, H, W) as `BlackBox.ask` does.

        Raises:
            BudgetError: The budget does not pay for all of them; none was asked about.
        """
        if self.n_left is not None and self.black_box.n_unpaid(images) > self.n_left:
            raise BudgetError(
                f"{self.black_box.name}: expected at most {self.n_left} more images within "
                f"max_queries={self.max_queries}, got {len(images)}; ask about fewer, or raise "
                "max_queries"
            )
        before = self.black_box.n_queries
        try:
            return self.black_box.ask(images)
        finally:
            # Also after a failure half way: what was answered was paid for.
            self.n_spent += self.black_box.n_queries - before
