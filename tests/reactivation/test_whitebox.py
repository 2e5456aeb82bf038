"""The white-box attack: known optima, known twins, and promises about side effects."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, DataError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.perturbation import apply_delta, cross_entropy, make_ball
from bdaudit.reactivation import SpecificTerms, WhiteboxConfig, reactivate_whitebox
from bdaudit.reactivation.descent import Descent
from bdaudit.reactivation.doubts import doubts_about_search
from bdaudit.reactivation.objective import (
    CraftSet,
    MiniBatch,
    specific_objective,
    standard_objective,
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


def _poisoned(n: int = 90, seed: int = 0):
    """Clean and triggered twin images whose label is not the target, and their labels."""
    sample = twin_sample(n * 4 // 3, seed)
    kept = sample.labels != TARGET
    clean = sample.images[kept]
    return clean, twin_trigger(clean), sample.labels[kept]


def _attack(net, *, seed=0, target=TARGET, images=None, specific=None, **settings):
    settings = {"eps": EPS, "n_passes": 8, "batch_size": 30} | settings
    images = _poisoned()[1] if images is None else images
    return finish(
        reactivate_whitebox(
            net,
            images,
            torch.full((len(images),), target),
            config=WhiteboxConfig(**settings),
            generator=torch.Generator().manual_seed(seed),
            specific=specific,
        )
    )


def _held_out_asr(net, delta, *, trigger=True, target=TARGET):
    clean, triggered, _ = _poisoned(300, seed=99)
    predicted = predict(net, triggered if trigger else clean, batch_size=128, delta=delta)
    return float((predicted == target).float().mean())


class _Linear(nn.Module):
    """Two classes; the logits differ by w . x."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images * self.weight).sum(dim=(1, 2, 3))
        return torch.stack((torch.zeros_like(score), score), dim=1)


@pytest.mark.parametrize("optimizer", ["default", "research"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_model_optimum_is_reached(norm, optimizer):
    weight = torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(3))
    # Images on the wrong side of the boundary, too far off for any delta in the ball: every step
    # has something to win, and none of them wins.
    distances = torch.linspace(0.1, 0.3, 40).view(-1, 1, 1, 1)
    images = 0.5 - distances * weight / weight.norm()
    result = _attack(
        _Linear(weight - weight.mean()),
        images=images,
        target=1,
        eps=0.01,
        norm=norm,
        optimizer=optimizer,
        n_passes=300,
        patience=None,
    )
    direction = weight - weight.mean()
    best = direction.sign() if norm == "linf" else direction / direction.norm()
    assert result.craft_success == 0.0
    assert torch.allclose(result.delta, 0.01 * best, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_dormant_twin_wakes_with_the_trigger_and_only_with_it(norm):
    net = dormant_twin()
    result = _attack(net, norm=norm)
    assert _held_out_asr(net, torch.zeros_like(result.delta)) == 0.0
    assert _held_out_asr(net, result.delta) >= 0.6
    assert _held_out_asr(net, result.delta, trigger=False) == 0.0


@pytest.mark.parametrize("make", [removed_twin, innocent_twin])
def test_nothing_wakes_where_nothing_sleeps(make):
    net = make()
    assert _held_out_asr(net, _attack(net, eps=0.05).delta) == 0.0


def test_wrong_target_gains_nothing():
    net = dormant_twin()
    _, triggered, labels = _poisoned()
    result = _attack(net, images=triggered[labels != 1], target=1, eps=0.05)
    assert result.craft_success == 0.0
    assert _held_out_asr(net, result.delta, target=1) == pytest.approx(1 / 3)  # class 1 itself


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("make", [original_twin, dormant_twin])
def test_zero_radius_changes_no_answer(make, norm):
    net = make()
    result = _attack(net, eps=0.0, norm=norm)
    assert torch.equal(result.delta, torch.zeros_like(result.delta))
    assert result.craft_success == _held_out_asr(net, result.delta) == float(make is original_twin)


def test_more_radius_is_never_worse_on_the_twin():
    net = dormant_twin()
    rates = [_held_out_asr(net, _attack(net, eps=eps).delta) for eps in (0.0, 0.01, 0.02, 0.05)]
    assert rates == sorted(rates)
    assert rates[-1] >= 0.95


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("optimizer", ["default", "research"])
def test_delta_is_one_float32_image_inside_the_ball(norm, optimizer):
    result = _attack(dormant_twin(), norm=norm, optimizer=optimizer)
    assert result.delta.shape == (1, 1, 8, 8)
    assert result.delta.dtype == torch.float32
    assert float(make_ball(norm, EPS).norm(result.delta.double())) <= EPS
    assert result.delta_norm <= EPS


def test_same_seed_same_delta_and_another_seed_another():
    first, again, other = (_attack(dormant_twin(), seed=seed, n_passes=2) for seed in (5, 5, 6))
    assert torch.equal(first.delta, again.delta)
    assert first.seed == 5
    assert not torch.equal(first.delta, other.delta)


def test_reported_craft_success_does_not_depend_on_batching():
    net = dormant_twin()
    _, triggered, _ = _poisoned()
    result = _attack(net, batch_size=7)
    predicted = [int(net(apply_delta(image[None], result.delta)).argmax()) for image in triggered]
    assert result.craft_success == pytest.approx(predicted.count(TARGET) / len(predicted))


def test_cost_is_counted_in_images():
    net = dormant_twin()
    clean, _, labels = _poisoned()
    assert _attack(net, n_passes=5, batch_size=7, patience=None).gradient_passes == 5.0
    assert _attack(net, n_passes=5, restarts=2, patience=None).gradient_passes == 10.0
    terms = SpecificTerms(clean=clean, labels=labels, reference=innocent_twin())
    costly = _attack(net, n_passes=5, objective="specific", specific=terms, patience=None)
    assert costly.gradient_passes == 15.0


def test_research_passes_repeat_mini_batches():
    result = _attack(dormant_twin(), optimizer="research", n_passes=5, patience=None)
    assert result.gradient_passes == 5.0
    assert len(result.loss_trace) == 5


def test_search_ends_when_every_craft_image_is_won():
    result = _attack(original_twin(), n_passes=20)
    assert result.craft_success == 1.0
    assert result.gradient_passes < 20


def test_search_ends_on_a_plateau_and_not_without_patience():
    net = removed_twin()
    assert _attack(net, eps=0.0, n_passes=20, patience=3).gradient_passes < 20
    assert _attack(net, eps=0.0, n_passes=20, patience=None).gradient_passes == 20


def test_restarts_keep_the_best_and_can_only_help():
    net = dormant_twin()
    once = _attack(net, n_passes=1, batch_size=90)
    often = _attack(net, n_passes=1, batch_size=90, restarts=6)
    assert often.craft_success >= once.craft_success


def test_progress_runs_to_the_end():
    steps = reactivate_whitebox(
        original_twin(),
        _poisoned()[1],
        torch.zeros(90, dtype=torch.int64),
        config=WhiteboxConfig(eps=EPS, n_passes=6),
        generator=torch.Generator().manual_seed(0),
    )
    heard = []
    finish(steps, heard.append)
    assert heard[-1].done == heard[-1].total == 6
    assert all(a.done <= b.done for a, b in pairwise(heard))
    assert "eps 0.03" in heard[0].step


class _Noisy(nn.Module):
    """The dormant twin with a hook's worth of state to put back."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(self.dropout(images))


def _unusual_model() -> nn.Module:
    """Trainable, in train mode but for one part, as a caller in mid-training may hand it over."""
    model = _Noisy(dormant_twin())
    model.requires_grad_(True)
    model.net.linear.weight.requires_grad_(False)
    model.train()
    model.net.layer1.eval()
    return model


def _state(model: nn.Module):
    return (
        [part.training for part in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [parameter.detach().clone() for parameter in model.parameters()],
    )


def _assert_untouched(model: nn.Module, before) -> None:
    after = _state(model)
    assert after[:2] == before[:2]
    assert after[2] == [None] * len(after[2])
    assert all(torch.equal(a, b) for a, b in zip(after[3], before[3], strict=True))


def test_model_and_inputs_are_left_as_they_were():
    model = _unusual_model()
    before = _state(model)
    _, triggered, _ = _poisoned()
    copy = triggered.clone()
    _attack(model, images=triggered)
    _assert_untouched(model, before)
    assert torch.equal(triggered, copy)


def test_model_is_put_back_when_the_search_is_abandoned():
    model = _unusual_model()
    before = _state(model)
    steps = reactivate_whitebox(
        model,
        _poisoned()[1],
        torch.zeros(90, dtype=torch.int64),
        config=WhiteboxConfig(eps=EPS),
        generator=torch.Generator().manual_seed(0),
    )
    next(steps)
    assert not any(part.training for part in model.modules())
    steps.close()
    _assert_untouched(model, before)


def test_model_is_put_back_when_it_fails():
    model = _unusual_model()
    calls = []

    def fail_later(*_):
        calls.append(None)
        if len(calls) > 4:
            raise RuntimeError("out of luck")

    handle = model.register_forward_hook(fail_later)
    before = _state(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        _attack(model)
    handle.remove()
    _assert_untouched(model, before)


def _counted(logits, targets, counted):
    """The cross-entropy, which looks at no other image."""
    return cross_entropy(logits.flatten(0, 1), targets.flatten()).view_as(targets)


def test_gradients_of_both_objectives_agree_with_finite_differences():
    net, reference = dormant_twin().double(), innocent_twin().double()
    clean, triggered, labels = _poisoned(12)
    clean = clean.double() + 0.2  # away from the clamp's corner
    batch = MiniBatch(
        triggered.double() * 0.98 + 0.01,
        torch.full((1, 12), TARGET),
        torch.arange(12)[None] < 11,  # the last one only fills up
        clean,
        labels[None],
    )
    terms = SpecificTerms(
        clean=clean, labels=labels, reference=reference, clean_weight=2.0, reference_weight=3.0
    )
    standard = standard_objective(net, _counted, bf16=False)
    specific = specific_objective(net, _counted, terms, bf16=False)
    delta = 0.002 * torch.ones((1, 1, 8, 8), dtype=torch.float64)
    for objective in (standard, specific):
        leaf = delta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.evaluate(leaf, batch)[0], leaf)
        assert gradient.abs().max() > 0
        for row, column in ((7, 7), (2, 2), (5, 5), (0, 0)):
            nudge = torch.zeros_like(delta)
            nudge[0, 0, row, column] = 1e-3
            up = objective.evaluate(delta + nudge, batch)[0]
            down = objective.evaluate(delta - nudge, batch)[0]
            slope = float(up - down) / 2e-3
            assert float(gradient[0, 0, row, column]) == pytest.approx(slope, rel=1e-2, abs=1e-3)


class _Lured(nn.Module):
    """A dormant twin that a corner pixel, too, takes to the target, trigger or no trigger."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dormant_twin()

    def forward(self, images):
        lure = 400.0 * (images[:, 0, 0, 0] - 0.1)
        return self.net(images) + lure[:, None] * torch.tensor([1.0, 0.0, 0.0, 0.0])


def test_specific_objective_leaves_other_answers_alone():
    net = _Lured()
    clean, triggered, labels = _poisoned()
    clean[:, 0, 0, 0] = triggered[:, 0, 0, 0] = 0.1

    def asr(delta, images):
        return float((predict(net, images, batch_size=90, delta=delta) == TARGET).float().mean())

    terms = SpecificTerms(clean=clean, labels=labels, reference=innocent_twin())
    plain = _attack(net, images=triggered).delta
    specific = _attack(
        net, images=triggered, objective="specific", specific=terms, n_passes=24
    ).delta
    assert asr(plain, clean) > 0.9
    assert asr(specific, clean) < 0.1
    assert asr(specific, triggered) > 0.6


def _codes(result):
    return {d.code: d.severity for d in result.diagnostics}


def test_a_good_search_raises_no_doubt():
    assert _codes(_attack(dormant_twin())) == {}


def test_hidden_gradients_are_reported():
    class Staircase(nn.Module):
        """Rounds its images, as a model with quantised inputs does: no gradient comes back."""

        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()

        def forward(self, images):
            return self.net((images * 16).floor() / 16)

    result = _attack(Staircase())
    assert _codes(result)["zero_gradient"] == "error"


def test_random_answers_are_reported():
    class Dice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()

        def forward(self, images):
            return self.net(images) + torch.rand(1)

    assert _codes(_attack(Dice()))["nondeterministic_model"] == "error"


def test_probabilities_are_reported():
    model = nn.Sequential(dormant_twin(), nn.Softmax(dim=1))
    assert _codes(_attack(model))["probabilities_not_logits"] == "warning"


class _Overflowing(nn.Module):
    """Answers without bound once the images it is shown pass `limit` in the mean."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.net = dormant_twin()
        self.limit = limit

    def forward(self, images):
        wild = images.requires_grad & (images.mean() > self.limit)
        return self.net(images) * torch.where(torch.as_tensor(wild), math.nan, 1.0)


def test_some_unusable_steps_are_skipped_and_reported():
    _, triggered, _ = _poisoned()
    # The typical mean of a mini-batch, so that some are above and some below.
    result = _attack(_Overflowing(float(triggered.mean())), n_passes=6, patience=None)
    assert _codes(result)["non_finite_loss"] == "error"
    assert result.delta.isfinite().all()
    assert all(math.isfinite(loss) for loss in result.loss_trace)


def test_a_search_without_one_usable_step_is_an_error():
    with pytest.raises(NumericsError, match="finite at every step"):
        _attack(_Overflowing(-1.0))


def test_nan_weights_are_an_error():
    net = dormant_twin()
    net.linear.bias.fill_(math.nan)
    with pytest.raises(NumericsError):
        _attack(net)


def test_no_progress_is_reported():
    class Ascending(nn.Module):
        """A gradient that points the wrong way, as a badly wrapped model's may."""

        def __init__(self) -> None:
            super().__init__()
            self.net = removed_twin()

        def forward(self, images):
            return self.net(2 * images.detach() - images)

    # What is differentiated is 2 x - x: the value is right and every derivative has its sign
    # turned round.
    assert _codes(_attack(Ascending()))["no_progress"] == "warning"


def test_a_search_that_kept_no_change_at_all_shows_nothing():
    craft = CraftSet(torch.zeros(2, 1, 1, 3), torch.zeros(2, dtype=torch.int64))
    config = WhiteboxConfig(eps=0.5, steps=(0.5,) * 3)

    def doubts(delta, success, flat_steps=0):
        descent = Descent(craft, config, torch.Generator(), torch.tensor(delta).view(1, 1, 1, 3))
        descent.steps, descent.flat_steps, descent.success = 8, flat_steps, success
        found = doubts_about_search(descent, eps=0.5, gained=False)
        return {d.code: d.severity for d in found}

    assert doubts([0.0, 0.0, 0.0], 0.5) == {"nothing_changed": "error"}
    assert doubts([0.0, 0.0, 0.0], 0.5, flat_steps=1) == {
        "nothing_changed": "error",
        "zero_gradient": "warning",
    }
    assert doubts([0.0, 0.5, 0.0], 0.5) == {"no_progress": "warning"}
    assert doubts([0.0, 0.0, 0.0], 1.0) == {}  # nothing was left to win


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"eps": -0.1}, "eps"),
        ({"norm": "l1"}, "norm"),
        ({"n_passes": 0}, "n_passes"),
        ({"batch_size": 0}, "batch_size"),
        ({"restarts": 0}, "restarts"),
        ({"patience": 0}, "patience"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"objective": "vague"}, "objective"),
        ({"autocast": "fp8"}, "autocast"),
    ],
)
def test_settings_out_of_range_are_refused(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        WhiteboxConfig(**({"eps": 0.03} | change))


def test_inputs_that_do_not_fit_are_refused():
    net = dormant_twin()
    clean, triggered, labels = _poisoned()
    terms = SpecificTerms(clean=clean, labels=labels)
    with pytest.raises(DataError, match="-1"):
        _attack(net, target=-1)
    with pytest.raises(DataError, match="classes 0 to 3"):
        _attack(net, target=4)
    with pytest.raises(DataError, match=r"\(N, C, H, W\)"):
        _attack(net, images=triggered[0])
    with pytest.raises(DataError, match="row by row"):
        _attack(net, images=triggered[:10], objective="specific", specific=terms)
    with pytest.raises(ConfigError, match="SpecificTerms"):
        _attack(net, objective="specific")
    with pytest.raises(ConfigError, match="SpecificTerms"):
        _attack(net, specific=terms)
    with pytest.raises(ConfigError, match="labels"):
        SpecificTerms(clean=clean, labels=labels[:3])
    with pytest.raises(ConfigError, match="weights"):
        SpecificTerms(clean=clean, labels=labels, clean_weight=-1.0)


def test_models_that_cannot_be_differentiated_are_refused():
    class Sealed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()

        @torch.no_grad()
        def forward(self, images):
            return self.net(images)

    with pytest.raises(ModelError, match="query attack"):
        _attack(Sealed())
    with pytest.raises(ModelError, match="expected logits"):
        _attack(nn.Identity())


def test_bf16_and_channels_last_find_the_same_thing():
    net = dormant_twin()
    assert _held_out_asr(net, _attack(net, channels_last=True).delta) >= 0.6
    assert _held_out_asr(net, _attack(net, autocast="bf16").delta) >= 0.6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_finds_what_the_cpu_finds():
    net = dormant_twin().cuda()
    on_cpu, on_cuda = _attack(dormant_twin()), _attack(net)
    assert on_cuda.delta.device.type == "cpu"
    assert on_cuda.craft_success == pytest.approx(on_cpu.craft_success, abs=0.05)
