"""The transfer attack: made on surrogates, judged on a model it never saw."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import finish
from bdaudit.perturbation import apply_delta, make_ball
from bdaudit.reactivation.transfer import (
    TransferConfig,
    diversified,
    momentum_accumulator,
    reactivate_transfer,
    transfer_loss,
)
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
STRATEGIES = ("ensemble", "momentum", "one-per-step")
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def _poisoned(n=90, seed=0):
    sample = twin_sample(n * 4 // 3, seed)
    kept = sample.labels != TARGET
    return twin_trigger(sample.images[kept]), sample.labels[kept]


def _sleeper(bias_shift):
    """A relative of the dormant twin, whose backdoor sleeps deeper or less deep."""
    net = dormant_twin()
    net.layer1.conv2.bias[1] -= bias_shift
    return net


def _attack(nets, *, seed=0, images=None, target=TARGET, **settings):
    settings = {"eps": EPS, "n_passes": 8, "batch_size": 30} | settings
    images = _poisoned()[0] if images is None else images
    return finish(
        reactivate_transfer(
            nets,
            images,
            torch.full((len(images),), target),
            config=TransferConfig(**settings),
            generator=torch.Generator().manual_seed(seed),
        )
    )


def _held_out_asr(net, delta):
    predicted = predict(net, _poisoned(300, seed=99)[0], batch_size=128, delta=delta)
    return float((predicted == TARGET).float().mean())


@every_strategy
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_delta_made_on_relatives_wakes_the_dormant_twin(norm, strategy):
    result = _attack([_sleeper(0.3), _sleeper(-0.3)], norm=norm, strategy=strategy)
    assert _held_out_asr(dormant_twin(), torch.zeros_like(result.delta)) == 0.0
    assert _held_out_asr(dormant_twin(), result.delta) >= 0.6


def test_even_the_original_serves_though_it_is_won_before_the_search_starts():
    result = _attack([original_twin()], n_passes=20)
    assert result.craft_success == (1.0,)
    assert _held_out_asr(dormant_twin(), result.delta) >= 0.6


@pytest.mark.parametrize("make", [removed_twin, innocent_twin])
def test_nothing_wakes_where_nothing_sleeps(make):
    delta = _attack([_sleeper(0.0), _sleeper(0.3)], eps=0.05).delta
    assert _held_out_asr(make(), delta) == 0.0


@every_strategy
def test_zero_radius_changes_no_answer(strategy):
    result = _attack([original_twin(), dormant_twin()], eps=0.0, strategy=strategy)
    assert torch.equal(result.delta, torch.zeros_like(result.delta))
    assert result.craft_success == (1.0, 0.0)


@every_strategy
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_delta_is_one_float32_image_inside_the_ball(norm, strategy):
    result = _attack([dormant_twin()], norm=norm, strategy=strategy, input_diversity=0.5)
    assert result.delta.shape == (1, 1, 8, 8)
    assert result.delta.dtype == torch.float32
    assert float(make_ball(norm, EPS).norm(result.delta.double())) <= EPS
    assert result.delta_norm <= EPS


def test_same_seed_same_delta_and_another_seed_another():
    nets = [dormant_twin(), original_twin()]
    first, again, other = (
        _attack(nets, seed=seed, n_passes=2, input_diversity=0.5) for seed in (5, 5, 6)
    )
    assert torch.equal(first.delta, again.delta)
    assert first.seed == 5
    assert not torch.equal(first.delta, other.delta)


def test_success_on_each_surrogate_is_that_of_a_plain_loop():
    nets = [original_twin(), dormant_twin(), removed_twin()]
    result = _attack(nets)
    triggered, _ = _poisoned()
    expected = tuple(
        sum(
            int(net(apply_delta(image[None], result.delta)).argmax()) == TARGET
            for image in triggered
        )
        / len(triggered)
        for net in nets
    )
    assert result.craft_success == pytest.approx(expected)


def test_cost_is_counted_in_images():
    nets = [dormant_twin(), original_twin(), removed_twin()]

    def passes(strategy):
        return _attack(nets, n_passes=4, patience=None, strategy=strategy).gradient_passes

    assert [passes(strategy) for strategy in STRATEGIES] == [12.0, 12.0, 4.0]


class _Spy(nn.Module):
    """Writes down how many images it was asked about with gradients on."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.n_asked = []

    def forward(self, images):
        if images.requires_grad:
            self.n_asked.append(len(images))
        return self.net(images)


def test_one_per_step_takes_turns_and_ensemble_asks_all():
    for strategy, expected in (("one-per-step", 3), ("ensemble", 6)):
        nets = [_Spy(dormant_twin()), _Spy(original_twin())]
        _attack(nets, n_passes=2, strategy=strategy, patience=None)
        # Two calls beforehand look for doubts about the model.
        assert [len(net.n_asked) - 2 for net in nets] == [expected, expected]


def test_surrogates_of_another_architecture_and_in_train_mode_are_left_as_they_were():
    other = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    nets = [other.train(), dormant_twin()]
    triggered, _ = _poisoned()
    copy = triggered.clone()
    result = _attack(nets, images=triggered)
    assert len(result.craft_success) == 2
    assert [part.training for part in other.modules()] == [True] * 4
    assert torch.equal(triggered, copy)
    assert result.diagnostics == ()


def test_progress_runs_to_the_end():
    steps = reactivate_transfer(
        [dormant_twin()],
        _poisoned()[0],
        torch.zeros(90, dtype=torch.int64),
        config=TransferConfig(eps=EPS, n_passes=5),
        generator=torch.Generator().manual_seed(0),
    )
    heard = []
    finish(steps, heard.append)
    assert heard[-1].done == heard[-1].total == 5
    assert all(a.done <= b.done for a, b in pairwise(heard))
    assert "transfer, linf eps 0.03" in heard[0].step


def test_doubts_name_the_surrogate():
    torch.manual_seed(0)

    class Random(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] + torch.rand(len(images), 4)

    result = _attack([dormant_twin(), Random()], n_passes=1)
    doubts = {(doubt.code, doubt.subject) for doubt in result.diagnostics}
    assert ("nondeterministic_model", "surrogate 2") in doubts
    assert not any(subject == "surrogate 1" for _, subject in doubts)


# ---- pieces --------------------------------------------------------------------------------------


def test_loss_does_not_depend_on_the_scale_of_logits_and_still_pulls_at_what_is_won():
    logits = torch.randn((20, 5), generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 20.0  # won by far
    logits.requires_grad_()
    targets = torch.zeros(20, dtype=torch.int64)
    loss = transfer_loss(logits, targets)
    assert torch.allclose(loss, transfer_loss(7 * logits, targets), rtol=1e-5)
    loss.mean().backward()
    assert (logits.grad[:, 0] < 0).all()


def test_momentum_is_the_running_sum_of_normalised_gradients():
    gradients = torch.randn((4, 1, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    gradients[2] *= 100
    accumulate = momentum_accumulator()
    expected = torch.zeros(1, 2, 3, 3)
    for gradient in gradients:
        expected = expected + gradient / gradient.abs().mean()
        assert torch.allclose(accumulate(gradient), expected, atol=1e-6)
    assert accumulate(torch.zeros(1, 2, 3, 3)).eq(0).all()
    assert accumulate(torch.full((1, 2, 3, 3), torch.nan)).isnan().all()
    assert torch.allclose(
        accumulate(gradients[0]) - expected, gradients[0] / gradients[0].abs().mean(), atol=1e-5
    )


def test_diverse_inputs_keep_their_shape_and_their_light():
    images = torch.full((3, 2, 20, 30), 0.5)
    draw = torch.Generator().manual_seed(0)
    seen = [diversified(images, 1.0, draw) for _ in range(20)]
    assert all(batch.shape == images.shape for batch in seen)
    filled = [float((batch > 0).float().mean()) for batch in seen]
    assert min(filled) >= 0.9 * 0.9 - 0.05
    assert len(set(filled)) > 3
    assert diversified(images, 0.0, draw) is images


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": -1.0}, "eps"),
        ({"norm": "l1"}, "norm"),
        ({"n_passes": 0}, "n_passes"),
        ({"strategy": "all"}, "strategy"),
        ({"input_diversity": 1.5}, "input_diversity"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        TransferConfig(**({"eps": 0.03} | settings))


def test_bad_inputs_are_refused():
    images, net = _poisoned()[0], dormant_twin()
    cases = (
        ([], images, torch.zeros(90, dtype=torch.int64), "one surrogate or more"),
        ([net], images[0], torch.zeros(90, dtype=torch.int64), "expected images"),
        ([net], images, torch.zeros(5, dtype=torch.int64), "expected images"),
        ([net], images, torch.full((90,), -1), "target of -1"),
        ([net], images, torch.full((90,), 9), "target 9"),
    )
    for nets, triggered, targets, said in cases:
        steps = reactivate_transfer(
            nets,
            triggered,
            targets,
            config=TransferConfig(eps=EPS),
            generator=torch.Generator(),
        )
        with pytest.raises(DataError, match=said):
            finish(steps)
