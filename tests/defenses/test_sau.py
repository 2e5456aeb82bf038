"""Shared adversarial unlearning: the examples that two models share, and unlearning them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdaudit.defenses import SauConfig, shared_adversarial_unlearn
from bdaudit.defenses.sau import divergence, log_not, shared_perturbation
from bdaudit.errors import ConfigError
from tests.defenses.digits import TUNING


def _astray(model, original, images, labels, delta):
    """Share of images that delta leads to one wrong class on both models."""
    with torch.no_grad():
        answers = [one((images + delta).clamp(0, 1)).argmax(1) for one in (model, original)]
    return float(((answers[0] == answers[1]) & (answers[0] != labels)).double().mean())


@pytest.mark.slow
def test_the_backdoor_goes_the_task_stays_and_less_is_shared(victim, plain_asrs):
    defended = victim.defend(shared_adversarial_unlearn, SauConfig(tuning=TUNING))
    # Seeds apart: .05 to .08, after plain fine-tuning .55 to .66.
    assert victim.asr(defended) < min(plain_asrs) - 0.25
    assert victim.accuracy(defended) > victim.accuracy(victim.classifier) - 0.08
    images, labels = victim.test

    def shared(model):
        delta = shared_perturbation(model, victim.classifier, images, labels, SauConfig())
        return _astray(model, victim.classifier, images, labels, delta)

    assert shared(defended) < shared(victim.classifier) - 0.2


def test_perturbations_lead_both_models_astray_and_stay_in_the_ball(victim):
    images, labels = victim.test
    config = SauConfig(eps=0.15, step_size=0.05)
    delta = shared_perturbation(victim.classifier, victim.classifier, images, labels, config)
    assert float(delta.abs().max()) <= 0.15 + 1e-6
    assert not delta.requires_grad
    found = _astray(victim.classifier, victim.classifier, images, labels, delta)
    for at_random in (0.15, -0.15):
        everywhere = torch.full_like(images, at_random)
        assert found > 0.1 + _astray(
            victim.classifier, victim.classifier, images, labels, everywhere
        )


def test_two_models_are_led_to_the_same_class():
    """Two linear models of three classes: only class 2 is one that both can be led to."""
    first, second = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
    # Pixel 0 leads the first model to class 1 and the second nowhere; pixel 1 leads both to 2.
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 6.0]]))
        second.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 6.0]]))
        nets = []
        for linear in (first, second):
            net = nn.Sequential(nn.Flatten(), linear, _Shift(torch.tensor([1.0, 0.0, 0.0])))
            nets.append(net.eval().requires_grad_(False))
    images = torch.full((4, 1, 1, 2), 0.1)
    labels = torch.zeros(4, dtype=torch.long)
    assert all(bool((net(images).argmax(1) == 0).all()) for net in nets)
    config = SauConfig(eps=0.3, step_size=0.1, n_steps=20)
    delta = shared_perturbation(*nets, images, labels, config)
    for net in nets:
        assert (net((images + delta).clamp(0, 1)).argmax(1) == 2).all()


class _Shift(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, logits):
        return logits + self.shift


def test_divergence_and_log_of_the_rest_against_plain_sums():
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn((2, 6, 4), generator=draw) * 3
    p, q = first.softmax(1), second.softmax(1)
    mean = (p + q) / 2
    expected = 0.5 * (
        functional.kl_div(mean.log(), p, reduction="none").sum(1)
        + functional.kl_div(mean.log(), q, reduction="none").sum(1)
    )
    assert torch.allclose(divergence(first, second), expected, atol=1e-6)
    assert torch.allclose(divergence(first, first), torch.zeros(6), atol=1e-6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    rest = 1 - p.gather(1, labels[:, None])[:, 0]
    assert torch.allclose(log_not(first, labels), rest.log(), atol=1e-4)
    # Where p is 1 in float32 the plain formula would be minus infinity.
    sure = torch.tensor([[60.0, 0.0, 0.0]])
    assert float(log_not(sure, torch.tensor([0]))) == pytest.approx(-60 + 0.6931, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": 1.5}, "eps"),
        ({"step_size": 0.0}, "step_size"),
        ({"n_steps": 0}, "n_steps"),
        ({"error_weight": -1.0}, "error_weight"),
        ({"unlearning_weight": float("inf")}, "unlearning_weight"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        SauConfig(**settings)
