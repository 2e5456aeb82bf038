"""Intervals and tests for shares of images, over scipy.

Every rate in bdaudit is a share of held-out images; two rates on the same images are compared
image by image. No interval here has zero width, not at 0 % and not at 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # and not stats, which takes half a second to import

__all__ = [
    "Estimate",
    "PairedDifference",
    "difference_of_differences",
    "difference_of_estimates",
    "may_be_chance",
    "paired_difference",
    "prediction_bound",
    "probit",
    "share_of_probit",
    "wilson_interval",
]


def may_be_chance(low: float, num_classes: int) -> bool:
    """Whether a model may do no better than guessing.

    Args:
        low: Lower end of the interval of its accuracy.
        num_classes: K. The limit is one and a half times chance, or ten points above it where
            classes are so few that this is less.

    >>> [may_be_chance(0.14, 10), may_be_chance(0.16, 10), may_be_chance(0.61, 2)]
    [True, False, False]
    """
    chance = 1.0 / num_classes
    return low <= min(1.5 * chance, chance + 0.1)


def wilson_interval(successes: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share.

    Args:
        successes: From 0 to `total`.
        total: At least 1.
        confidence: Two-sided coverage, in (0, 1).

    Returns:
        Lower and upper end, both in [0, 1].

    Raises:
        ValueError: There are more successes than there were trials, or no trials.

    Source: Wilson, JASA 22 (1927).

    >>> [round(end, 3) for end in wilson_interval(0, 20)]
    [0.0, 0.161]
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"expected 0 to N successes of N of 1 or more, got {successes} of {total}")
    # In closed form: scipy's comes with an exact test, which takes 3 ms a rate.
    z2 = float(special.ndtri((1 + confidence) / 2)) ** 2
    share = successes / total
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    reach = sqrt(z2 * (share * (1 - share) + z2 / (4 * total)) / total) / (1 + z2 / total)
    low = 0.0 if successes == 0 else middle - reach
    return low, 1.0 if successes == total else middle + reach


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Share of the first minus share of the second, on the same images.

    Attributes:
        value: In [-1, 1].
        low: Lower end of the interval.
        high: Upper end of the interval.
        only_first: Images on which only the first succeeded.
        only_second: Images on which only the second succeeded.
        total: Images compared.
    """

    value: float
    low: float
    high: float
    only_first: int
    only_second: int
    total: int


def paired_difference(
    first: Sequence[bool] | ArrayLike, second: Sequence[bool] | ArrayLike, *, confidence: float
) -> PairedDifference:
    """Difference of two shares on the same images, with Tango's score interval.

    Args:
        first: Outcomes (N,), one boolean an image.
        second: Outcomes of the other condition on the same images, same order.
        confidence: Two-sided coverage in [0, 1); a one-sided bound at level 1 - a is the end of
            the two-sided interval at confidence 1 - 2a.

    Returns:
        The difference and its interval. The interval keeps its coverage for few discordant pairs
        and has a width above zero even when there are none.

    Raises:
        ValueError: The two do not have the same length, or there are no images.

    Source: Tango, Statistics in Medicine 17 (1998) 891-908, equations 6 to 9.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != two.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"paired outcomes of shapes {one.shape} and {two.shape}")
    total = int(one.size)
    only_first = int(np.sum(one & ~two))
    only_second = int(np.sum(~one & two))
    value = (only_first - only_second) / total
    low, high = _tango_interval(only_first, only_second, total, confidence)
    return PairedDifference(value, low, high, only_first, only_second, total)


@lru_cache(maxsize=100_000)  # a policy is judged many times over when limits are calibrated
def _tango_interval(
    only_first: int, only_second: int, total: int, confidence: float
) -> tuple[float, float]:
    value = (only_first - only_second) / total
    z = float(special.ndtri(0.5 + confidence / 2))
    from scipy import optimize  # half as long again

    if z == 0.0:
        return value, value  # where the score is zero; no sign changes that a root could be told by

    def score(difference: float) -> float:
        return _tango_score(difference, only_first, only_second, total)

    # The score falls strictly from +inf at -1 to -inf at +1 (for discordant pairs strictly
    # between the extremes), so each end is one root.
    tiny = 1e-9
    low = (
        -1.0
        if score(-1 + tiny) <= z
        else optimize.brentq(lambda d: score(d) - z, -1 + tiny, min(value, 1 - tiny))
    )
    high = (
        1.0
        if score(1 - tiny) >= -z
        else optimize.brentq(lambda d: score(d) + z, max(value, -1 + tiny), 1 - tiny)
    )
    return float(low), float(high)


def _tango_score(difference: float, only_first: int, only_second: int, total: int) -> float:
    """Score statistic of H0: share of first - share of second = difference."""
    a = 2.0 * total
    b = -only_first - only_second + (2 * total - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    # Constrained maximum-likelihood share of "only the second succeeded".
    q = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = total * (2 * q + difference * (1 - difference))
    gap = only_first - only_second - total * difference
    if variance <= 0.0:
        return 0.0 if gap == 0 else float(np.copysign(np.inf, gap))
    return gap / sqrt(variance)


def prediction_bound(values: Sequence[float], *, confidence: float) -> float:
    """Upper bound for one more value drawn like these.

    Args:
        values: Two or more, taken as independent and normal.
        confidence: One-sided, in (0, 1).

    Raises:
        ValueError: There are fewer than two.

    Source: Hahn, JASA 64 (1969) 878-888: mean + t * s * sqrt(1 + 1/n), n - 1 degrees of freedom.
    """
    if len(values) < 2:
        raise ValueError(f"a prediction bound needs two values or more, got {len(values)}")
    n = len(values)
    t = float(special.stdtrit(n - 1, confidence))
    return float(np.mean(values) + t * np.std(values, ddof=1) * sqrt(1 + 1 / n))


def probit(share: float, total: int) -> float:
    """Normal deviate of a share, on whose scale shares near 0 and 1 spread as those between do.

    Args:
        share: In [0, 1].
        total: Images it is a share of; none and all of them count half an image more and less, so
            that the deviate is finite.

    Source: half a count as in Hautus, Behavior Research Methods 27 (1995) 46-51.

    >>> round(probit(0.0, 900), 2), round(probit(0.5, 900), 2)
    (-3.26, 0.0)
    """
    return float(special.ndtri((share * total + 0.5) / (total + 1.0)))


def share_of_probit(deviate: float) -> float:
    """Share in [0, 1] that a normal deviate stands for; without the half counts of `probit`."""
    return float(special.ndtr(deviate))


class Estimate(Protocol):
    """A value with the ends of its interval."""

    @property
    def value(self) -> float:
        """The estimate itself."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


def difference_of_estimates(first: Estimate, second: Estimate) -> tuple[float, float, float]:
    """Interval for one estimate minus another, from their own intervals.

    Args:
        first: An estimate with its interval.
        second: Another, on the same scale and at the same confidence.

    Returns:
        The difference, the lower and the upper end, at the confidence of the two.

    Source: the "square and add" rule (MOVER) of Zou and Donner, Statistics in Medicine 27 (2008)
    1693-1702. The two are taken as independent; a positive correlation (the same images) makes
    the interval wider than it need be, never too narrow.
    """
    value = first.value - second.value
    below = hypot(first.value - first.low, second.high - second.value)
    above = hypot(first.high - first.value, second.value - second.low)
    return value, value - below, value + above


def difference_of_differences(
    first: PairedDifference, second: PairedDifference
) -> tuple[float, float, float]:
    """Interval for one paired difference minus another model's: that of `difference_of_estimates`.

    The ends are kept within [-2, 2], which such a difference cannot leave.
    """
    value, low, high = difference_of_estimates(first, second)
    return value, max(low, -2.0), min(high, 2.0)
