"""The parts of the query search, each against an answer worked out another way."""

import pytest
import torch
from scipy.stats import binomtest

from bdaudit.perturbation import make_ball
from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_distil import DistilSearch
from bdaudit.reactivation.query_probes import ProbeSearch, probe_directions
from bdaudit.reactivation.query_race import RaceSearch, sign_test
from bdaudit.reactivation.query_search import failures
from bdaudit.reactivation.query_square import square_side
from tests.twins import original_twin


def _draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n_for", "n_against"), [(0, 0), (1, 0), (5, 2), (30, 31), (60, 20)])
def test_sign_test_is_the_exact_binomial_test(n_for, n_against):
    n = n_for + n_against
    expected = binomtest(n_for, n, alternative="greater").pvalue if n else 1.0
    assert sign_test(n_for, n_against) == pytest.approx(expected)


def test_directions_are_signs_and_the_coarse_ones_constant_on_squares():
    probes = probe_directions(9, 4, (2, 5, 7), _draw())
    assert probes.shape == (9, 2, 5, 7)
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    coarse = probes[:4]
    assert torch.equal(coarse[:, :, 0::2][:, :, :2], coarse[:, :, 1::2])
    assert torch.equal(coarse[..., 0::2][..., :3], coarse[..., 1::2])
    assert not torch.equal(probes[4:, :, 0], probes[4:, :, 1])


def test_probes_estimate_the_gradient_of_the_mean_loss():
    """Averaged over many probes, delta's direction is the sign of a finite-difference gradient."""
    weight = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    images = torch.full((50, 1, 4, 4), 0.5)
    craft = CraftSet(images, torch.ones(50, dtype=torch.int64))
    search = ProbeSearch(
        craft,
        make_ball("linf", 0.01),
        torch.zeros(1, 1, 4, 4),
        budget=100_000,
        batch_size=100,
        scale=1.0,
    )
    draw = _draw()
    for _ in range(200):
        shown = search.propose(100, draw)
        score = (shown * weight).flatten(1).sum(1)
        search.absorb(torch.stack((torch.full_like(score, 9.0), score), 1))
    clear = weight.abs() > 0.3
    assert torch.equal(search.delta.sign()[clear], weight.sign()[clear])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_yields_to_many_estimates_and_not_to_few(norm):
    ball = make_ball(norm, 0.1)
    start = ball.random_surface_point(torch.Size((1, 1, 6, 6)), _draw(1))
    craft = CraftSet(torch.full((60, 1, 6, 6), 0.5), torch.ones(60, dtype=torch.int64))
    search = ProbeSearch(craft, ball, start, budget=100_000, batch_size=120, scale=1.0)
    draw = _draw()

    def alike():
        return float(torch.cosine_similarity(search.delta.flatten(), start.flatten(), dim=0))

    for step in range(400):
        shown = search.propose(120, draw)
        score = -(shown * start).flatten(1).sum(1)  # the start is as wrong as can be
        search.absorb(torch.stack((torch.zeros_like(score), score), 1))
        if step == 0:
            assert alike() > 0.99
    assert alike() < -0.5  # coarse probes blur a delta as rough as this one


def test_a_student_ends_with_the_delta_of_its_best_round():
    images = torch.rand(40, 1, 8, 8, generator=_draw())
    craft = CraftSet(images, torch.zeros(40, dtype=torch.int64))
    config = QueryConfig(eps=0.05, feedback="labels", batch_size=20, distil_rounds=4)
    search = DistilSearch(craft, [original_twin()], config, start=None, budget=1000)
    draw, deltas = _draw(), []
    for n_won in (2, 9, 5, 9):
        shown = search.propose(1000, draw)
        deltas.append(search.delta)
        answers = torch.ones(len(shown), dtype=torch.int64)
        answers[:n_won] = 0
        search.absorb(answers)
    assert len(search.propose(1000, draw)) == 0
    assert torch.equal(search.delta, deltas[3])
    assert not torch.equal(search.delta, deltas[2])


def test_the_race_is_won_by_the_better_perturbation():
    images = torch.linspace(0.2, 0.6, 100).view(-1, 1, 1, 1)
    craft = CraftSet(images, torch.ones(100, dtype=torch.int64))
    racers = [torch.full((1, 1, 1, 1), shift) for shift in (0.0, 0.2, 0.1)]
    race = RaceSearch(craft, racers, batch_size=30)
    draw, n_asked = _draw(), 0
    while len(shown := race.propose(1000, draw)):
        n_asked += len(shown)
        race.absorb((shown.flatten() > 0.5).long())
    assert torch.equal(race.delta, racers[1])
    # The zero perturbation wins 25 images of 100 and the winner 75: it fell on the way.
    assert n_asked < 300
    assert race.success == (75, 100)
    assert race.gained


def test_a_race_of_equals_goes_to_the_first():
    craft = CraftSet(torch.full((20, 1, 1, 1), 0.4), torch.ones(20, dtype=torch.int64))
    race = RaceSearch(craft, [torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)], batch_size=40)
    race.absorb(torch.zeros(len(race.propose(100, _draw())), dtype=torch.int64))
    assert not race.delta.any()
    assert not race.gained


def test_a_race_without_queries_goes_to_the_last():
    craft = CraftSet(torch.full((20, 1, 1, 1), 0.4), torch.ones(20, dtype=torch.int64))
    race = RaceSearch(craft, [torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)], batch_size=40)
    assert len(race.propose(1, _draw())) == 0
    assert bool(race.delta.all())
    assert race.success is None


def test_losses_lie_between_won_and_lost():
    scores = torch.tensor([[0.0, 9.0], [9.0, 0.0], [1.0, 1.0]])
    targets = torch.ones(3, dtype=torch.int64)
    losses = failures(scores, targets)
    assert losses[0] < losses[2] < losses[1]
    assert torch.equal(
        failures(torch.tensor([1, 0, 1]), targets), torch.tensor([0.0, 1, 0]).double()
    )


def test_squares_shrink_as_the_original_schedule_says():
    # Share .8 of 1,024 pixels at first, halved when more than 10, 50, ... were tried.
    assert [square_side(n, 32, 32) for n in (1, 10, 11, 51)] == [29, 29, 20, 14]
    assert square_side(9999, 32, 32) == round((0.8 / 2**9 * 1024) ** 0.5)
    assert square_side(9999, 4, 4) == 1
