"""Scores of classes against innocent models, on tables of sizes made by hand or drawn."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from bdaudit.inversion.anomaly import LEAST_SPREAD, residuals, score_arms


def table(n_models: int, n_classes: int, seed: int) -> torch.Tensor:
    """Class effects that all models share, and a spread of one doubling between models."""
    draw = torch.Generator().manual_seed(seed)
    classes = 2 * torch.randn(n_classes, generator=draw)
    return classes + torch.randn(n_models, n_classes, generator=draw)


def test_each_class_is_compared_with_the_innocents_own_figure_for_it() -> None:
    sizes = torch.tensor([[1.0, 5.0, 9.0], [4.0, 5.0, 9.0], [4.0, 5.0, 9.0]])
    assert residuals(sizes).tolist() == [3.0, 0.0, 0.0]


def test_a_model_that_is_easier_altogether_is_not_suspicious() -> None:
    sizes = table(4, 10, seed=0)
    easier = sizes.clone()
    easier[0] -= 3.0
    before, after = score_arms(sizes, n_tests=10), score_arms(easier, n_tests=10)
    assert before.scores == pytest.approx(after.scores, abs=1e-5)


def test_a_planted_class_is_found_and_no_other() -> None:
    sizes = table(4, 10, seed=1)
    sizes[0, 7] -= 12.0
    found = score_arms(sizes, n_tests=10)
    assert found.p_values is not None
    assert found.p_values[7] < 0.001
    assert min(p for k, p in enumerate(found.p_values) if k != 7) > 0.05


def test_p_values_are_honest_where_the_original_is_one_more_innocent_model() -> None:
    """At most about 5 % of innocent originals have a smallest corrected p-value below .05."""
    smallest = []
    for seed in range(400):
        p_values = score_arms(table(4, 10, seed), n_tests=10).p_values
        assert p_values is not None
        smallest.append(min(p_values))
    alarms = sum(p < 0.05 for p in smallest)
    assert stats.binomtest(alarms, 400, 0.05, alternative="greater").pvalue > 0.01
    # And not so conservative that nothing could ever show.
    assert alarms > 0


def test_no_spread_is_taken_for_less_than_what_one_search_repeats_to() -> None:
    found = score_arms(torch.zeros(4, 10), n_tests=10)
    assert found.spread == LEAST_SPREAD
    assert found.p_values == pytest.approx([1.0] * 10)


def test_one_innocent_model_and_two_classes_tell_nothing() -> None:
    found = score_arms(torch.tensor([[1.0, 9.0], [8.0, 9.0]]), n_tests=2)
    assert found.p_values is None
    assert "two innocent models or five classes are needed" in (found.reason or "")


def test_two_innocent_models_and_two_classes_tell_something() -> None:
    found = score_arms(torch.tensor([[1.0, 9.0], [8.0, 9.0], [8.1, 9.1]]), n_tests=2)
    assert found.p_values is not None
    assert found.p_values[0] < 0.05 < found.p_values[1]


def test_the_least_gain_that_would_be_noticed_is_where_the_p_value_reaches_it() -> None:
    scored = score_arms(table(4, 8, seed=3), n_tests=24)
    least = scored.least_gain(0.1, n_tests=24)
    assert scored.spread is not None
    assert scored.degrees is not None
    tail = stats.t.sf(least / scored.spread, scored.degrees) * 24
    assert tail == pytest.approx(0.1)
    assert score_arms(torch.ones(1, 2), n_tests=2).least_gain(0.1, n_tests=2) == float("inf")
