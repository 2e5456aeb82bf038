"""Noise on the scale and shift of normalisation layers, on nets small enough to check by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.perturbation import neurons_of


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(4 * 36),
        nn.Linear(4 * 36, 3),
    )
    with torch.no_grad():
        for number in (1, 4):
            net[number].bias.uniform_(-1, 1)
    return net.eval().requires_grad_(False)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand((12, 1, 6, 6), generator=draw), torch.arange(12) % 3


def test_noise_is_relative_and_lies_on_scales_and_shifts_only():
    net, (images, _) = _net(), _batch()
    neurons = neurons_of(net)
    assert set(neurons.shaken) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert torch.equal(neurons.answer(neurons.still(), images), net(images))
    noise = neurons.random(0.3, torch.Generator().manual_seed(2))
    expected = copy.deepcopy(net)
    with torch.no_grad():
        for name, value in expected.named_parameters():
            if name in noise:
                value *= 1 + noise[name]
    assert torch.allclose(neurons.answer(noise, images), expected(images), atol=1e-6)
    assert 0.2 < max(float(values.abs().max()) for values in noise.values()) <= 0.3


def test_steps_raise_the_loss_more_than_random_noise_does_and_stay_within_eps():
    net, (images, labels) = _net(), _batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    neurons = neurons_of(net)

    def loss(noise):
        return float(functional.cross_entropy(neurons.answer(noise, images), labels))

    noise = neurons.still()
    for _ in range(10):
        noise = neurons.raise_loss(noise, images, labels, step=0.1, eps=0.3)
    assert all(float(values.abs().max()) <= 0.3 + 1e-6 for values in noise.values())
    at_random = [
        loss(neurons.random(0.3, torch.Generator().manual_seed(seed))) for seed in range(20)
    ]
    assert loss(noise) > max(at_random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_norm_alone_is_a_network_too_and_one_without_norms_is_refused():
    assert set(neurons_of(nn.LayerNorm(3)).shaken) == {"weight", "bias"}
    for net in (nn.Linear(3, 2), nn.Sequential(nn.BatchNorm2d(3, affine=False))):
        with pytest.raises(ModelError, match="normalisation layers"):
            neurons_of(net)
