"""How unusual it is that the original needs so little toward a class.

Sizes are compared as log2, so that differences are in doublings: "half the mask" is 1 whatever the
class. Each class is compared with the innocent models' own figure for that class, since classes
differ on innocent models too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

__all__ = ["LEAST_SPREAD", "LEAST_SPREAD_OF_STAND_INS", "Anomalies", "residuals", "score_arms"]

LEAST_SPREAD = 0.25
"""Standard deviation, in doublings, below which two runs of a search on one model can differ by
their random draws alone; no spread between models is taken to be smaller."""

LEAST_SPREAD_OF_STAND_INS = 0.5
"""The same where an innocent model was made for the search: it learned from few images, and may
differ from true ones by more than it does from its like (docs/inversion-evidence.md)."""

_MIN_ARMS_FOR_OWN_SPREAD = 5
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True, eq=False)
class Anomalies:
    """The original's classes against those of the innocent models.

    Attributes:
        gains: (n,) doublings by which the original needs less than innocent models do.
        scores: (n,) gains in standard deviations; `None` where no spread can be had.
        p_values: (n,) chance of a score as high in one of `n_tests` comparisons if the original
            were one more innocent model; at most 1. `None` likewise.
        spread: Standard deviation of a gain, in doublings.
        degrees: Degrees of freedom of the t distribution it is held against.
        reason: Why there are no scores.
    """

    gains: Tensor
    scores: tuple[float, ...] | None
    p_values: tuple[float, ...] | None
    spread: float | None
    degrees: int | None
    reason: str | None = None

    def least_gain(self, p_value: float, *, n_tests: int) -> float:
        """Return the doublings from which a gain has this p-value or less; infinite without any."""
        if self.spread is None or self.degrees is None:
            return float("inf")
        return self.spread * float(stats.t.isf(p_value / n_tests, self.degrees))


def residuals(sizes: Tensor) -> Tensor:
    """Return by how many doublings the first model needs less than the others (n,).

    Args:
        sizes: (M, n) log2 sizes, the model in question first.

    From five classes on, what all classes have in common is taken out (their median): a model that
    is easier to push altogether is not suspicious for that. With no other model the classes are
    compared with one another.
    """
    gains = (sizes[1:].mean(0) if len(sizes) > 1 else 0.0) - sizes[0]
    return gains - gains.median() if _centred(sizes) else gains


def score_arms(sizes: Tensor, *, n_tests: int, least_spread: float = LEAST_SPREAD) -> Anomalies:
    """Score the original's classes.

    Args:
        sizes: (M, n) log2 sizes, the original first, then K = M - 1 innocent models.
        n_tests: Comparisons made in all, over classes and methods (Bonferroni).
        least_spread: Standard deviation, in doublings, below which no spread is taken to be.

    Returns:
        The scores. The spread is the larger of two estimates: between the innocent models (each
        against the others, pooled over classes), and between the original's own classes (the
        median absolute deviation, which few backdoored classes do not move). The p-value is that
        of a prediction from K models, t distributed; it rests on gains that are roughly normal,
        and on the original being drawn like the innocent models but for a backdoor.

    Source: the median absolute deviation is Neural Cleanse's (Wang et al., S&P 2019, section IV);
    the comparison with innocent models class by class, and the t distribution, are ours.
    """
    gains = residuals(sizes)
    n_innocent, n = len(sizes) - 1, sizes.shape[1]
    spreads: list[float] = []
    degrees = 0
    if n_innocent >= 2:
        others = [
            residuals(torch.cat([sizes[j : j + 1], sizes[1:j], sizes[j + 1 :]]))
            for j in range(1, n_innocent + 1)
        ]
        # Each is one model against the mean of K - 1: its variance is K / (K - 1) of one model's.
        pooled = torch.stack(others).square().mean() * (n_innocent - 1) / n_innocent
        spreads.append(float(pooled.sqrt()) * (1 + 1 / n_innocent) ** 0.5)
        degrees = (n_innocent - 1) * max(n - 1, 1)
    if _centred(sizes):
        spreads.append(_MAD_TO_SIGMA * float((gains - gains.median()).abs().median()))
        degrees = max(degrees, n - 1)
    if not spreads:
        return Anomalies(
            gains, None, None, None, None,
            "two innocent models or five classes are needed to estimate what is chance, got "
            f"{n_innocent} innocent and {n} classes",
        )  # fmt: skip
    spread = max([least_spread, *spreads])
    scores = gains / spread
    tails = stats.t.sf(scores.numpy(), degrees)
    return Anomalies(
        gains,
        tuple(scores.tolist()),
        tuple(min(1.0, float(tail) * n_tests) for tail in tails),
        spread,
        degrees,
    )


def _centred(sizes: Tensor) -> bool:
    return sizes.shape[1] >= _MIN_ARMS_FOR_OWN_SPREAD
