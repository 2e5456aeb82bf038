"""Targeted losses against plain loops, finite differences and their own promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdaudit import perturbation
from bdaudit.perturbation import (
    boosted_cross_entropy,
    cross_entropy,
    margin,
    smoothed_failure,
    softplus_margin,
)

LOSSES = [cross_entropy, margin, softplus_margin, boosted_cross_entropy]


def _case(seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn((6, 5), generator=draw, dtype=torch.float64) * scale
    return logits, torch.randint(5, (6,), generator=draw)


def _by_hand(loss, row: list[float], target: int) -> float:
    rest = [z for k, z in enumerate(row) if k != target]
    total = math.fsum(math.exp(z) for z in row)
    gap = max(rest) - row[target]
    if loss is cross_entropy:
        return -math.log(math.exp(row[target]) / total)
    if loss is margin:
        return gap
    if loss is softplus_margin:
        return math.log(1 + math.exp(gap))
    return -math.log(math.exp(row[target]) / total) - math.log(1 - math.exp(max(rest)) / total)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 1000))
def test_losses_agree_with_a_plain_loop(loss, seed):
    logits, targets = _case(seed)
    expected = [
        _by_hand(loss, row.tolist(), int(t)) for row, t in zip(logits, targets, strict=True)
    ]
    assert loss(logits, targets).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss):
    logits, targets = _case(seed=7)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@given(st.integers(0, 1000))
def test_margin_is_negative_exactly_where_the_target_wins(seed):
    logits, targets = _case(seed)
    assert torch.equal(margin(logits, targets) < 0, logits.argmax(1) == targets)


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 1000))
def test_raising_the_target_never_raises_a_loss(loss, seed):
    logits, targets = _case(seed)
    raised = logits.scatter_add(1, targets[:, None], torch.full((6, 1), 0.1, dtype=torch.float64))
    assert (loss(raised, targets) <= loss(logits, targets) + 1e-12).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_logits_give_finite_losses_and_gradients(loss):
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 0.0]], requires_grad=True)
    value = loss(logits, torch.tensor([1, 1]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_smoothed_failure_does_not_depend_on_the_scale_of_logits(seed, scale):
    logits, targets = _case(seed)
    plain = smoothed_failure(logits, targets)
    assert torch.allclose(smoothed_failure(logits * scale, targets), plain)
    assert torch.equal(plain < 0.5, logits.argmax(1) == targets)


def test_smoothed_failure_pulls_hardest_near_the_boundary():
    logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [9.0, 0.0]], requires_grad=True)
    value = smoothed_failure(logits, torch.tensor([0, 0, 0]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    hopeless, near, won = gradient[:, 0].abs().tolist()
    # T = (9 + 1 + 9) / 3 / 4, and the derivative of sigmoid(m / T) is s (1 - s) / T.
    temperature = 19 / 12
    s = 1 / (1 + math.exp(-1 / temperature))
    assert near == pytest.approx(s * (1 - s) / temperature, rel=1e-5)
    assert hopeless == pytest.approx(won, rel=1e-4)
    assert near > 20 * hopeless


def test_smoothed_failure_survives_margins_of_zero():
    logits = torch.zeros((2, 3), requires_grad=True)
    value = smoothed_failure(logits, torch.tensor([0, 1]))
    assert value.tolist() == [0.5, 0.5]


def test_two_classes_are_enough():
    logits, targets = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
    assert margin(logits, targets).item() == 2.0
    # With one rival only, 1 - p(rival) is p(target).
    doubled = boosted_cross_entropy(logits, targets)
    assert doubled.item() == pytest.approx(2 * cross_entropy(logits, targets).item())


def test_every_public_name_exists():
    assert all(hasattr(perturbation, name) for name in perturbation.__all__)
