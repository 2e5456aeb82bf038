from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from bdaudit.foundation.statistics import (
    difference_of_differences,
    paired_difference,
    prediction_bound,
    wilson_interval,
)


@given(st.integers(1, 400), st.data())
def test_wilson_solves_its_defining_equation(total: int, data: st.DataObject) -> None:
    """Oracle: the ends are where the score test of the share just rejects."""
    successes = data.draw(st.integers(0, total))
    low, high = wilson_interval(successes, total, confidence=0.95)
    z = stats.norm.ppf(0.975)
    share = successes / total
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * np.sqrt(end * (1 - end) / total), rel=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert high > low


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[list, list]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def tango_by_likelihood(
    only_first: int, only_second: int, total: int, z: float
) -> tuple[float, float]:
    """Oracle: the score interval with the nuisance share found by maximising the likelihood."""

    def score(difference: float) -> float:
        def negative_log_likelihood(q: float) -> float:
            p = q + difference
            rest = 1 - p - q
            if min(p, q, rest) < 0:
                return np.inf
            parts = ((only_first, p), (only_second, q), (total - only_first - only_second, rest))
            return -sum(n * np.log(max(share, 1e-300)) for n, share in parts)

        lower, upper = max(0.0, -difference), (1 - difference) / 2
        q = optimize.minimize_scalar(
            negative_log_likelihood,
            bounds=(lower, upper),
            method="bounded",
            options={"xatol": 1e-12},
        ).x
        variance = total * (2 * q + difference * (1 - difference))
        return (only_first - only_second - total * difference) / np.sqrt(variance)

    value = (only_first - only_second) / total
    low = optimize.brentq(lambda d: score(d) - z, -0.999, value)
    high = optimize.brentq(lambda d: score(d) + z, value, 0.999)
    return low, high


@pytest.mark.parametrize("cells", [(10, 20, 5, 65), (0, 3, 0, 97), (30, 7, 7, 56), (5, 60, 1, 34)])
def test_paired_difference_is_tangos_interval(cells: tuple[int, int, int, int]) -> None:
    result = paired_difference(*outcomes(*cells), confidence=0.95)
    low, high = tango_by_likelihood(cells[1], cells[2], sum(cells), stats.norm.ppf(0.975))
    assert result.value == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert result.low == pytest.approx(low, abs=1e-5)
    assert result.high == pytest.approx(high, abs=1e-5)


@pytest.mark.parametrize("cells", [(50, 0, 0, 50), (100, 0, 0, 0), (0, 0, 0, 100), (0, 100, 0, 0)])
def test_no_interval_has_zero_width(cells: tuple[int, int, int, int]) -> None:
    result = paired_difference(*outcomes(*cells), confidence=0.90)
    assert result.high - result.low > 0.02


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80),
    st.floats(0.5, 0.999),
)
def test_swapping_the_two_turns_the_interval_round(
    pairs: list[tuple[bool, bool]], confidence: float
) -> None:
    first, second = zip(*pairs, strict=True)
    one = paired_difference(first, second, confidence=confidence)
    two = paired_difference(second, first, confidence=confidence)
    assert one.value == -two.value
    assert one.low == pytest.approx(-two.high, abs=1e-6)
    assert one.low <= one.value <= one.high


def test_the_one_sided_bound_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    shares = (0.05, 0.15, 0.05, 0.75)  # both, only first, only second, neither
    missed = 0
    for _ in range(1500):
        cell = rng.choice(4, size=300, p=shares)
        first, second = (cell == 0) | (cell == 1), (cell == 0) | (cell == 2)
        missed += paired_difference(first, second, confidence=0.90).low > 0.10
    # 5 % expected; 1,500 draws have a standard error of 0.6 points.
    assert 0.03 < missed / 1500 < 0.075


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([True], [True, False], confidence=0.95)


def test_difference_of_differences_covers_on_independent_models() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(800):
        parts = []
        for p in (0.30, 0.10):
            one, two = rng.random(400) < p, rng.random(400) < 0.05
            parts.append(paired_difference(one, two, confidence=0.90))
        value, low, high = difference_of_differences(*parts)
        assert low < value < high
        missed += low > 0.20
    assert 0.025 < missed / 800 < 0.08


def test_a_prediction_bound_covers_one_more_draw():
    random = np.random.default_rng(0)
    for n, confidence in ((3, 0.95), (5, 0.99), (5, 0.80)):
        drawn = random.normal(0.3, 0.1, (4000, n + 1))
        covered = [
            one_more <= prediction_bound(list(values), confidence=confidence)
            for *values, one_more in drawn
        ]
        assert np.mean(covered) == pytest.approx(confidence, abs=0.02)


def test_a_prediction_bound_needs_a_spread():
    with pytest.raises(ValueError, match="two values or more"):
        prediction_bound([0.3], confidence=0.95)


@pytest.mark.parametrize(("one", "two"), [(30, 10), (10, 10), (0, 25), (40, 0)])
def test_a_paired_difference_at_no_confidence_is_its_estimate(one: int, two: int) -> None:
    """A policy may ask for one-sided bounds at .5, the two-sided confidence of which is 0."""
    first, second = ([k < n for k in range(40)] for n in (one, two))
    found = paired_difference(first, second, confidence=0.0)
    assert (found.low, found.high) == (found.value, found.value)
