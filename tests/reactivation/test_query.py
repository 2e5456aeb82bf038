"""The query search: known optima, known twins, exact budgets, and resuming where it stopped."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bdaudit.errors import ConfigError, DataError, InputError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.perturbation import make_ball
from bdaudit.reactivation.query import reactivate_query
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.reactivation.query_state import read_state, write_state
from bdaudit.scoring import predict
from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_trigger,
)

EPS = 0.03
SURROGATES = [innocent_twin(), original_twin()]


def _triggered(n=60, seed=0):
    """Triggered twin images whose label is not the target."""
    sample = twin_sample(n * 4 // 3, seed)
    return twin_trigger(sample.images[sample.labels != TARGET])


class _Oracle:
    """A model that can only be queried, and that counts."""

    def __init__(self, net, *, feedback="scores"):
        self.net = net
        self.feedback = feedback
        self.calls = []

    def __call__(self, images):
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        self.calls.append(images.clone())
        with torch.no_grad():
            scores = self.net(images)
        return scores.argmax(1) if self.feedback == "labels" else scores

    @property
    def n_queries(self):
        return sum(map(len, self.calls))


def _search(oracle, *, images=None, target=TARGET, seed=0, surrogates=(), start=None, **changes):
    images = _triggered() if images is None else images
    held = {
        name: changes.pop(name) for name in ("state", "checkpoint", "identity") if name in changes
    }
    config = QueryConfig(
        **({"eps": EPS, "max_queries": 2000, "feedback": oracle.feedback} | changes)
        if isinstance(oracle, _Oracle)
        else ({"eps": EPS, "max_queries": 2000} | changes)
    )
    return finish(
        reactivate_query(
            oracle,
            images,
            torch.full((len(images),), target),
            config=config,
            generator=torch.Generator().manual_seed(seed),
            surrogates=surrogates,
            start=start,
            **held,
        )
    )


def _held_out_asr(net, delta, *, target=TARGET):
    predicted = predict(net, _triggered(300, seed=99), batch_size=128, delta=delta)
    return float((predicted == target).float().mean())


class _Linear(nn.Module):
    """Two classes; the logits differ by w . x."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        score = (images * self.weight).sum(dim=(1, 2, 3))
        return torch.stack((torch.zeros_like(score), score), dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_probes_find_the_optimum_of_a_linear_model(norm):
    # A smooth gradient; one of independent pixels is what coarse directions are not made for.
    across = torch.linspace(-1, 1, 8)
    weight = (across.view(-1, 1) + 0.5 * across).view(1, 1, 8, 8)
    distances = torch.linspace(0.1, 0.3, 40).view(-1, 1, 1, 1)
    images = 0.5 - distances * weight / weight.norm()
    oracle = _Oracle(_Linear(weight))
    result = _search(oracle, images=images, target=1, norm=norm, eps=0.02, max_queries=10_000)
    # The optimum: eps sign(w) under L-inf, eps w / |w| under L2, and what it gains.
    gain = float((weight * result.delta).sum())
    best = 0.02 * float(weight.abs().sum() if norm == "linf" else weight.norm())
    assert gain > 0.9 * best


@pytest.mark.parametrize("feedback", ["scores", "labels"])
def test_cold_search_wakes_the_dormant_twin(feedback):
    net = dormant_twin()
    without = _held_out_asr(net, torch.zeros(1, 1, 8, 8))
    result = _search(_Oracle(net, feedback=feedback), eps=0.05, max_queries=4000)
    assert without == 0
    assert _held_out_asr(net, result.delta) > 0.9
    assert result.craft_success > 0.9
    assert result.diagnostics == ()


@pytest.mark.parametrize(
    ("feedback", "autocast"), [("scores", None), ("labels", None), ("scores", "bf16")]
)
def test_surrogates_wake_it_with_few_queries(feedback, autocast):
    net = dormant_twin()
    oracle = _Oracle(net, feedback=feedback)
    result = _search(oracle, surrogates=SURROGATES, eps=0.05, max_queries=600, autocast=autocast)
    assert oracle.n_queries == result.n_queries <= 600
    assert _held_out_asr(net, result.delta) > 0.9


@pytest.mark.parametrize("make", [removed_twin, innocent_twin])
def test_nothing_is_woken_where_there_is_nothing(make):
    net = make()
    result = _search(_Oracle(net), surrogates=[original_twin()], distil_rounds=3)
    assert _held_out_asr(net, result.delta) == 0
    assert result.craft_success == 0


@pytest.mark.parametrize("schedule", ["default", "research"])
def test_a_model_that_no_pixel_moves_shows_no_progress(schedule):
    result = _search(
        lambda images: torch.eye(4)[torch.ones(len(images), dtype=torch.int64)], schedule=schedule
    )
    assert [(d.code, d.severity) for d in result.diagnostics] == [("no_progress", "warning")]


def test_a_table_that_is_left_as_it_is_shows_nothing():
    rows = torch.zeros(12, 1, 1, 4)

    def ask(images):
        return torch.eye(3)[torch.ones(len(images), dtype=torch.int64)]

    said = {"images": rows, "steps": (0.5,) * 4, "eps": 0.5, "max_queries": 200}
    stuck = _search(ask, **said)
    assert not stuck.delta.any()
    assert [(d.code, d.severity) for d in stuck.diagnostics] == [("nothing_changed", "error")]
    # With nothing left to win there is no reason to move.
    assert "nothing_changed" not in {d.code for d in _search(ask, target=1, **said).diagnostics}


def test_a_wrong_target_gains_nothing():
    result = _search(_Oracle(dormant_twin()), target=2)
    other = predict(dormant_twin(), _triggered(300, seed=99), batch_size=128, delta=result.delta)
    before = predict(dormant_twin(), _triggered(300, seed=99), batch_size=128)
    assert int((other == 2).sum()) <= int((before == 2).sum())


def test_research_schedule_only_ever_lowers_the_loss():
    net, images = dormant_twin(), _triggered()
    oracle = _Oracle(net)
    result = _search(oracle, schedule="research", max_queries=40 * len(images))
    targets = torch.full((len(images),), TARGET)

    def loss(delta):
        shown = (images + delta).clamp(0, 1)
        return float(nn.functional.cross_entropy(net(shown), targets))

    assert 1 < result.n_accepted < result.n_tried
    losses = [loss(point.delta) for point in result.milestones[1:]]
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < loss(torch.zeros(1, 1, 8, 8))


def test_research_schedule_asks_about_the_whole_craft_batch():
    images = _triggered()
    oracle = _Oracle(dormant_twin())
    result = _search(oracle, schedule="research", max_queries=3 * len(images) + 30)
    assert [len(call) for call in oracle.calls[2:]] == [len(images)] * 3
    assert result.n_queries == oracle.n_queries


@settings(max_examples=15, deadline=None)
@given(
    max_queries=st.integers(0, 700),
    batch_size=st.integers(2, 100),
    warm=st.booleans(),
    schedule=st.sampled_from(["default", "research"]),
    norm=st.sampled_from(["linf", "l2"]),
    feedback=st.sampled_from(["scores", "labels"]),
)
def test_budget_and_ball_are_never_left(max_queries, batch_size, warm, schedule, norm, feedback):
    oracle = _Oracle(dormant_twin(), feedback=feedback)
    result = _search(
        oracle,
        images=_triggered(12),
        surrogates=[original_twin()] if warm else (),
        max_queries=max_queries,
        batch_size=batch_size,
        schedule=schedule,
        norm=norm,
        distil_rounds=2,
    )
    assert oracle.n_queries == result.n_queries <= max_queries
    assert result.trace == () or result.trace[-1].n_queries == result.n_queries
    ball = make_ball(norm, EPS)
    for milestone in result.milestones:
        assert float(ball.norm(milestone.delta)) <= EPS


def test_eps_zero_asks_nothing():
    oracle = _Oracle(dormant_twin())
    result = _search(oracle, eps=0.0, surrogates=[original_twin()])
    assert oracle.n_queries == 0
    assert not result.delta.any()


def test_the_same_seed_gives_the_same_search():
    first, second, other = (
        _search(_Oracle(dormant_twin()), seed=seed, max_queries=400) for seed in (1, 1, 2)
    )
    assert torch.equal(first.delta, second.delta)
    assert first.trace == second.trace
    assert not torch.equal(first.delta, other.delta)


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("settings", "warm"),
    [
        ({}, False),
        ({}, True),
        ({"schedule": "research"}, False),
        ({"norm": "l2"}, True),
        ({"autocast": "bf16"}, True),
    ],
)
def test_a_search_killed_anywhere_resumes_with_the_same_numbers(settings, warm, tmp_path):
    # Seen through a file, as a killed process would.
    path = tmp_path / "state.safetensors"
    shape = {"max_queries": 500, "batch_size": 24, "distil_rounds": 3} | settings
    shape["images"] = _triggered(24)
    surrogates = SURROGATES if warm else []
    whole_oracle = _Oracle(dormant_twin())
    whole = _search(whole_oracle, surrogates=surrogates, **shape)

    calls = 0
    paid = []
    state = None
    for kill_before in (2, 3, 5, 9, 12, 17, None):
        oracle = _Oracle(dormant_twin())

        def ask(images, oracle=oracle, kill_before=kill_before):
            nonlocal calls
            if calls == kill_before:
                raise _KilledError
            calls += 1
            paid.append(images.clone())
            return oracle(images)

        try:
            resumed = _search(
                ask,
                surrogates=surrogates,
                state=state,
                checkpoint=lambda state: write_state(path, state),
                **shape,
            )
        except _KilledError:
            state = read_state(path)
    assert len(paid) == len(whole_oracle.calls) > 17
    for again, once in zip(paid, whole_oracle.calls, strict=True):
        assert torch.equal(again, once)
    assert torch.equal(resumed.delta, whole.delta)
    assert resumed.trace == whole.trace
    assert resumed.craft_success == whole.craft_success
    assert (resumed.n_tried, resumed.n_accepted) == (whole.n_tried, whole.n_accepted)
    assert len(resumed.milestones) == len(whole.milestones)


def test_a_finished_search_resumes_without_a_query(tmp_path):
    first = _search(_Oracle(dormant_twin()), max_queries=400)
    oracle = _Oracle(dormant_twin())
    again = _search(oracle, max_queries=400, state=first.state)
    assert oracle.n_queries == 0
    assert torch.equal(again.delta, first.delta)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eps": 0.02}, "eps was 0.03, is 0.02"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"images": _triggered(80)}, "craft images was"),
        ({"surrogates": [original_twin()]}, "surrogates was none, is 1"),
        ({"identity": {"sha256": "b"}}, "model sha256 was a, is b"),
    ],
)
def test_a_changed_search_is_refused_and_says_what_changed(changes, said):
    first = _search(_Oracle(dormant_twin()), max_queries=400, identity={"sha256": "a"})
    arguments = {"max_queries": 400, "identity": {"sha256": "a"}} | changes
    with pytest.raises(ConfigError, match=said):
        _search(_Oracle(dormant_twin()), state=first.state, **arguments)


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_a_damaged_state_is_refused(content, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"state\.safetensors"):
        read_state(path)
    with pytest.raises(InputError, match="missing"):
        read_state(tmp_path / "missing.safetensors")


def test_another_safetensors_file_is_no_state(tmp_path):
    from safetensors.torch import save_file

    save_file({"delta": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="format"):
        read_state(tmp_path / "model.safetensors")


def test_changing_answers_are_an_error():
    draw = torch.Generator().manual_seed(0)

    def noisy(images):
        return dormant_twin()(images) + torch.randn(len(images), 4, generator=draw)

    result = _search(noisy, max_queries=800)
    assert ("answers_change", "error") in [(d.code, d.severity) for d in result.diagnostics]


def test_labels_that_lie_now_and_then_do_not_stop_the_search():
    net, draw = dormant_twin(), torch.Generator().manual_seed(0)

    def noisy(images):
        labels = net(images).argmax(1)
        lied = torch.rand(len(labels), generator=draw) < 0.1
        return torch.where(lied, torch.randint(4, labels.shape, generator=draw), labels)

    result = _search(noisy, eps=0.05, max_queries=4000, feedback="labels")
    assert _held_out_asr(net, result.delta) > 0.9


def test_shifted_and_scaled_scores_make_no_difference():
    net = dormant_twin()
    plain = _search(_Oracle(net), max_queries=1000)
    other = _search(lambda images: 8 * net(images) + 3, max_queries=1000)
    assert torch.allclose(plain.delta, other.delta, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (lambda images: images.argmax(), ModelError, "expected scores"),
        (lambda images: torch.zeros(len(images), dtype=torch.int64), ModelError, "feedback"),
        (lambda images: torch.zeros(len(images) - 1, 4), ModelError, "expected scores"),
        (lambda images: torch.full((len(images), 4), math.nan), NumericsError, "NaN"),
    ],
)
def test_impossible_answers_are_refused(answer, error, said):
    with pytest.raises(error, match=said):
        _search(answer)


def test_a_target_beyond_the_classes_is_refused():
    with pytest.raises(DataError, match="target 7"):
        _search(_Oracle(dormant_twin()), target=7)


@pytest.mark.parametrize("target", [-1])
def test_images_that_do_not_count_are_refused(target):
    with pytest.raises(DataError, match="-1"):
        _search(_Oracle(dormant_twin()), target=target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": -0.1},
        {"norm": "l1"},
        {"max_queries": -1},
        {"batch_size": 1},
        {"feedback": "gradients"},
        {"schedule": "fast"},
        {"distil_share": 0.0},
        {"probe_scale": 0.0},
        {"autocast": "fp16"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        QueryConfig(**({"eps": 0.02} | wrong))


def test_surrogates_and_images_are_left_alone():
    surrogate = original_twin().train()
    before = {name: tensor.clone() for name, tensor in surrogate.state_dict().items()}
    images = _triggered()
    copy = images.clone()
    _search(_Oracle(dormant_twin()), images=images, surrogates=[surrogate], max_queries=300)
    assert surrogate.training
    assert torch.equal(images, copy)
    for name, tensor in surrogate.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_start_is_kept_when_nothing_beats_it():
    start = torch.full((1, 1, 8, 8), EPS)
    result = _search(_Oracle(removed_twin()), start=2 * start, max_queries=400)
    assert torch.equal(result.state.finalists[0], make_ball("linf", EPS).project(start))


def test_replace_keeps_validation():
    with pytest.raises(ConfigError):
        replace(QueryConfig(eps=0.1), max_queries=-5)
