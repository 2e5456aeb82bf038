"""Norm balls: projection, directions and random points."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdaudit.errors import ConfigError
from bdaudit.perturbation import L2Ball, LinfBall, can_move, make_ball

NORMS = st.sampled_from(["linf", "l2"])
RADII = st.just(0.0) | st.floats(1e-6, 4.0)
SEEDS = st.integers(0, 2**31)


def _vector(seed: int, scale: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((1, 3, 5, 4), generator=draw) * scale


def _length(norm: str, delta: torch.Tensor) -> float:
    """The norm in double precision, written out another way."""
    values = [abs(float(v)) for v in delta.flatten()]
    return max(values) if norm == "linf" else math.sqrt(math.fsum(v * v for v in values))


@given(NORMS, RADII, SEEDS, st.floats(1e-6, 1e3))
def test_projection_ends_inside_and_stays(norm, eps, seed, scale):
    ball = make_ball(norm, eps)
    once = ball.project(_vector(seed, scale))
    assert _length(norm, once) <= eps
    assert torch.equal(ball.project(once), once)


@given(NORMS, st.floats(0.1, 4.0), SEEDS)
def test_projection_leaves_points_inside_alone(norm, eps, seed):
    inside = _vector(seed, 1.0)
    inside *= 0.99 * eps / _length(norm, inside)
    assert torch.equal(make_ball(norm, eps).project(inside), inside)


@given(st.floats(0.1, 2.0), SEEDS, SEEDS)
def test_no_point_of_the_l2_ball_is_nearer_than_the_projection(eps, seed, other):
    ball = L2Ball(eps)
    outside = _vector(seed, 3.0)
    candidate = ball.random_point((1, 3, 5, 4), torch.Generator().manual_seed(other))
    nearest = (outside - ball.project(outside)).norm()
    assert (outside - candidate).norm() >= nearest - 1e-4


@given(NORMS, SEEDS, SEEDS, st.floats(1e-30, 1e20))
def test_no_direction_of_norm_one_rises_faster_than_ascent(norm, seed, other, scale):
    ball = make_ball(norm, 1.0)
    gradient = _vector(seed, 1.0) * scale
    direction = ball.ascent(gradient)
    assert _length(norm, direction) == pytest.approx(1.0, rel=2e-5)
    rival = ball.random_surface_point((1, 3, 5, 4), torch.Generator().manual_seed(other))
    unit = gradient.double() / scale
    assert (unit * direction).sum() >= (unit * rival).sum() - 1e-5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ascent_of_a_zero_gradient_is_zero(norm):
    assert torch.equal(make_ball(norm, 1.0).ascent(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))


@given(NORMS, RADII, SEEDS)
def test_random_points_are_inside_and_repeat_with_the_seed(norm, eps, seed):
    ball = make_ball(norm, eps)
    for draw in (ball.random_point, ball.random_surface_point):
        point = draw((1, 2, 6, 6), torch.Generator().manual_seed(seed))
        again = draw((1, 2, 6, 6), torch.Generator().manual_seed(seed))
        assert point.shape == (1, 2, 6, 6)
        assert _length(norm, point) <= eps
        assert torch.equal(point, again)


@given(NORMS, st.floats(0.01, 4.0), SEEDS)
def test_surface_points_are_on_the_surface(norm, eps, seed):
    point = make_ball(norm, eps).random_surface_point(
        (1, 3, 4, 4), torch.Generator().manual_seed(seed)
    )
    assert _length(norm, point) == pytest.approx(eps, rel=2e-5)
    if norm == "linf":
        assert point.abs().min() == point.abs().max()


def test_l2_points_cover_the_volume_evenly():
    # In three dimensions half the volume lies within 0.5 ** (1/3) of the centre.
    ball, draw = L2Ball(1.0), torch.Generator().manual_seed(0)
    lengths = torch.stack([ball.random_point((3,), draw).norm() for _ in range(2000)])
    assert (lengths < 0.5 ** (1 / 3)).float().mean() == pytest.approx(0.5, abs=0.04)


def test_no_float32_value_exceeds_a_radius_that_float32_cannot_hold():
    # float32(0.05) is 0.0500000007: a clamp to it would leave the ball.
    assert float(torch.tensor(0.05)) > 0.05
    assert float(LinfBall(0.05).project(torch.ones(1)).max()) <= 0.05


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_impossible_radius_is_refused(norm, eps):
    with pytest.raises(ConfigError, match="eps"):
        make_ball(norm, eps)


def test_unknown_norm_is_refused_and_known_ones_named():
    with pytest.raises(ConfigError, match="linf, l2"):
        make_ball("l1", 0.1)


STEPS = (0.0, 0.1, 0.25, float("inf"))


@given(st.floats(0.1, 1.0), SEEDS, st.floats(1e-3, 3.0))
def test_columns_of_a_table_move_by_whole_steps(eps, seed, scale):
    ball = make_ball("linf", eps, STEPS)
    draw = torch.Generator().manual_seed(seed)
    once = ball.project(torch.randn((1, 1, 1, 4), generator=draw) * scale)
    assert _length("linf", once) <= eps * (1 + 1e-4)
    assert torch.allclose(ball.project(once), once, atol=1e-6)
    for value, step in zip(once.flatten().tolist(), STEPS, strict=True):
        assert step == 0.0 or (value / step) == pytest.approx(round(value / step), abs=1e-4)


def test_what_a_column_can_move_by_by_hand():
    ball = LinfBall(0.3, STEPS)
    delta = torch.tensor([[[[0.17, -0.17, 0.2, 0.3]]]])
    assert ball.project(delta).flatten().tolist() == pytest.approx([0.17, -0.2, 0.25, 0.0])
    assert ball.possible(9 * delta).flatten().tolist() == pytest.approx([1.53, -1.5, 1.75, 0.0])
    # Rounding to the nearest step would leave the ball; 0.25 is the last step within.
    assert float(ball.project(torch.full((1, 1, 1, 4), 0.3))[..., 2]) == pytest.approx(0.25)


def test_a_radius_at_which_no_column_moves_is_refused():
    with pytest.raises(ConfigError, match=r"no column of the table can change: .* is 0\.25"):
        LinfBall(0.2, (0.25, float("inf")))
    assert LinfBall(0.0, (0.25,)).eps == 0.0


def test_an_l2_ball_has_no_room_for_steps():
    # Of 30 binary columns two could change within eps 2, and no descent finds them by rounding.
    for steps in ((1.0,) * 30, (0.1,) * 36, (0.0, float("inf"))):
        with pytest.raises(ConfigError, match=r"expected linf .* use --norm linf"):
            make_ball("l2", 2.0, steps)
    assert make_ball("l2", 2.0, (0.0, 0.0)) == make_ball("l2", 2.0)


def test_which_columns_can_move():
    assert can_move(STEPS, 0.1) == (True, True, False, False)
    assert can_move(STEPS, 0.3) == (True, True, True, False)


@given(st.floats(0.1, 4.0), SEEDS, st.floats(1e-3, 1e3))
def test_the_mark_of_a_box_never_moves(eps, seed, scale):
    ball = make_ball("linf", eps, marked=True)
    generator = torch.Generator().manual_seed(seed)
    marked = torch.randn((1, 4, 5, 4), generator=generator) * scale
    moved = [
        ball.project(marked),
        ball.possible(marked),
        ball.random_point(marked.shape[1:], generator),
        ball.random_surface_point(marked.shape[1:], generator),
    ]
    assert all(not bool(delta[..., 3, :, :].any()) for delta in moved)
    assert torch.equal(moved[0][:, :3], LinfBall(eps).project(marked[:, :3]))
    assert _length("linf", moved[3]) == pytest.approx(eps, rel=2e-5)


def test_of_a_detector_only_the_largest_change_is_bounded():
    with pytest.raises(ConfigError, match="expected linf for detectors"):
        make_ball("l2", 1.0, marked=True)
