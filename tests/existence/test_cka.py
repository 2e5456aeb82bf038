"""CKA from Gram matrices against the feature form, textbook sums and its invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdaudit.existence.cka import Estimator, Side, cka, gram, half_samples

ESTIMATORS: tuple[Estimator, ...] = ("plain", "debiased")


def features(seed: int, n: int, p: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=draw, dtype=torch.float64)


def alike(one: Tensor, other: Tensor, estimator: Estimator) -> float:
    return float(cka(Side(one, None, estimator), Side(other, None, estimator)))


def similarity(x: Tensor, y: Tensor, estimator: Estimator) -> float:
    return alike(gram(x.clone()), gram(y.clone()), estimator)


def feature_form(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al., equation 4: no Gram matrix anywhere."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y, "fro") ** 2
    return float(cross / (np.linalg.norm(x.T @ x, "fro") * np.linalg.norm(y.T @ y, "fro")))


def unbiased_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al., equation 3: averages over ordered tuples of distinct indices, one by one."""
    n = len(k)

    def average(size: int, value: object) -> float:
        assert callable(value)
        tuples = list(itertools.permutations(range(n), size))
        return math.fsum(value(*t) for t in tuples) / len(tuples)

    pairs = average(2, lambda i, j: k[i, j] * l[i, j])
    fours = average(4, lambda i, j, q, r: k[i, j] * l[q, r])
    threes = average(3, lambda i, j, q: k[i, j] * l[i, q])
    return pairs + fours - 2 * threes


@pytest.mark.parametrize(("p", "q"), [(3, 5), (40, 7), (1, 1), (60, 200)])
def test_plain_equals_the_feature_form(p: int, q: int) -> None:
    x, y = features(0, 30, p), features(1, 30, q)
    y[:, :1] += 2 * x[:, :1] + 5
    assert similarity(x, y, "plain") == pytest.approx(feature_form(x.numpy(), y.numpy()), rel=1e-9)


def test_debiased_equals_the_average_over_distinct_indices() -> None:
    x, y = features(2, 7, 4), features(3, 7, 5)
    y[:, 0] += x[:, 1]
    k, l = (x @ x.T).numpy(), (y @ y.T).numpy()  # noqa: E741
    expected = unbiased_hsic(k, l) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(l, l))
    assert similarity(x, y, "debiased") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weights_equal_cutting_the_rows_out(estimator: Estimator) -> None:
    x, y = features(4, 24, 9), features(5, 24, 6)
    y[:, :3] += x[:, :3]
    halves = half_samples(24, 5, torch.Generator().manual_seed(0)).double()
    own = Side(gram(x.clone()), halves, estimator)
    found = torch.stack(
        [cka(Side(gram(second.clone()), halves, estimator), own) for second in (y, y.flip(0))]
    )
    expected = [
        [similarity(second[half > 0], x[half > 0], estimator) for half in halves]
        for second in (y, y.flip(0))
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(5, 20),
    p=st.integers(1, 12),
    q=st.integers(1, 12),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
    estimator=st.sampled_from(ESTIMATORS),
)
def test_invariances(
    seed: int, n: int, p: int, q: int, scale: float, shift: float, estimator: Estimator
) -> None:
    x, y = features(seed, n, p), features(seed + 1, n, q)
    rotation = torch.linalg.qr(features(seed + 2, q, q)).Q
    value = similarity(x, y, estimator)
    assert similarity(x, x, estimator) == pytest.approx(1, abs=1e-9)
    assert similarity(y, x, estimator) == pytest.approx(value, abs=1e-9)
    assert similarity(x, scale * y @ rotation + shift, estimator) == pytest.approx(value, abs=1e-7)
    assert abs(value) <= 1 + 1e-9


def test_only_plain_calls_independent_features_alike() -> None:
    values = {
        estimator: [
            similarity(features(seed, 40, 300), features(1000 + seed, 40, 300), estimator)
            for seed in range(30)
        ]
        for estimator in ESTIMATORS
    }
    assert min(values["plain"]) > 0.8
    assert abs(np.mean(values["debiased"])) < 4 * np.std(values["debiased"]) / math.sqrt(30)
    assert np.std(values["debiased"]) < 0.05


def test_float32_keeps_the_digits_under_a_large_mean() -> None:
    x, y = features(6, 50, 20), features(7, 50, 20)
    y += x
    expected = similarity(x, y, "plain")
    shifted = gram((x + 1000).float()), gram((y - 1000).float())
    assert alike(*shifted, "plain") == pytest.approx(expected, abs=1e-3)
    plainly = (x + 1000).float() @ (x + 1000).float().T  # centring afterwards loses them
    centring = torch.eye(50) - 1 / 50
    lost = alike(centring @ plainly @ centring, shifted[1], "plain")
    assert abs(lost - expected) > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
def test_a_constant_is_like_nothing(estimator: Estimator, constant: float) -> None:
    flat = gram(torch.full((10, 6), constant))
    assert not flat.any()
    x = gram(features(8, 10, 4).float())
    assert alike(flat, x, estimator) == 0
    assert alike(x, flat, estimator) == 0


def test_half_samples_are_halves_and_every_input_has_its_turn() -> None:
    halves = half_samples(11, 400, torch.Generator().manual_seed(0))
    assert torch.equal(halves.sum(1), torch.full((400,), 5.0))
    assert set(halves.unique().tolist()) == {0.0, 1.0}
    share = halves.mean(0)
    assert float((share - 5 / 11).abs().max()) < 5 * math.sqrt(0.25 / 400)
