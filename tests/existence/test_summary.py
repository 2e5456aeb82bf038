"""From similarities to the coefficient, on numbers small enough to check by hand."""

from __future__ import annotations

import pytest
import torch

from bdaudit.existence.cka import Side, cka, gram, half_samples
from bdaudit.existence.summary import LayerEvidence, combine_layers, half_sample_interval


def evidence(defended: float, reference: float) -> LayerEvidence:
    return LayerEvidence(
        layer="conv",
        tac=torch.tensor([0.5, 1.5]),
        kept=torch.tensor([1]),
        defended=torch.tensor([defended], dtype=torch.float64),
        reference=torch.tensor([reference], dtype=torch.float64),
    )


def test_both_normalisations_by_hand() -> None:
    result = combine_layers([evidence(0.9, 0.8), evidence(0.5, 0.0)], 0.95)
    assert result.value == pytest.approx((0.5 + 0.5) / 2)
    assert result.ratio_of_means == pytest.approx((0.7 - 0.4) / (1 - 0.4))
    different = combine_layers([evidence(0.8, 0.8), evidence(0.6, 0.2)], 0.95)
    assert different.value == pytest.approx(0.25)
    assert different.ratio_of_means == pytest.approx(0.4)
    assert (different.low, different.high) == (None, None)


def test_a_layer_where_the_reference_equals_the_original_is_left_out_with_a_reason() -> None:
    same = evidence(0.3, 1 - 1e-7)
    assert same.record().coefficient is None
    assert "as similar to the original" in str(same.record().reason)
    assert combine_layers([same, evidence(0.5, 0.0)], 0.95).value == pytest.approx(0.5)
    assert combine_layers([same], 0.95).value is None


def test_nothing_measured_is_undefined() -> None:
    assert combine_layers([], 0.95).value is None
    unmeasured = LayerEvidence(layer="conv", reason="never runs")
    assert combine_layers([unmeasured], 0.95).ratio_of_means is None
    assert unmeasured.record().reason == "never runs"


def test_record_lists_the_channels_with_their_tac() -> None:
    record = evidence(0.9, 0.8).record()
    assert (record.channels, record.channels_kept) == (2, 1)
    assert record.top_channels == (1,)
    assert record.top_tac == (1.5,)
    assert record.coefficient == pytest.approx(0.5)


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    # A mean's standard error is known: s / sqrt(n). The halves must find it without scaling.
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(400, generator=draw)
    halves = half_samples(400, 4000, draw)
    low, high = half_sample_interval(numbers.mean(), halves @ numbers / 200, 0.95)
    assert low is not None
    assert high is not None
    expected = 1.96 * float(numbers.std()) / 20
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)
    assert (high + low) / 2 == pytest.approx(float(numbers.mean()), abs=1e-6)


def test_too_few_finite_halves_give_no_interval() -> None:
    values = torch.full((50,), float("nan"))
    values[:19] = 0.5
    assert half_sample_interval(torch.tensor(0.5), values, 0.95) == (None, None)


def test_the_interval_covers_the_similarity_of_the_population() -> None:
    draw = torch.Generator().manual_seed(1)
    mixing, other = torch.randn(5, 30, generator=draw), torch.randn(5, 30, generator=draw)

    def sample(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        latent = torch.randn(n, 5, generator=draw) + torch.rand(n, 5, generator=draw) ** 2
        noise = torch.randn(n, 30, generator=draw)
        return gram(latent @ mixing), gram(latent @ (mixing + other) + noise)

    def alike(
        first: torch.Tensor, second: torch.Tensor, halves: torch.Tensor | None = None
    ) -> torch.Tensor:
        return cka(Side(first, halves, "debiased"), Side(second, halves, "debiased"))

    population = float(torch.stack([alike(*sample(2000)) for _ in range(3)]).mean())
    covered = 0
    for _ in range(150):
        first, second = sample(80)
        value = alike(first, second)[0]
        spread = alike(first, second, half_samples(80, 100, draw))
        low, high = half_sample_interval(value, spread, 0.95)
        assert low is not None
        assert high is not None
        covered += low <= population <= high
    assert 0.90 <= covered / 150 <= 1.0
