"""CLP: the bound of a channel, which batch norm belongs to which convolution, what is pruned."""

import numpy as np
import pytest
import torch
from torch import nn

from bdaudit.defenses.clp import (
    ClpConfig,
    _normalised_convolutions,
    channel_lipschitz,
    prune_by_lipschitz,
)
from bdaudit.errors import ConfigError, DataError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.models import preactresnet18

TRIGGER_CHANNEL = 15


def _run(net, images, **settings):
    draw = torch.Generator().manual_seed(0)
    labels = torch.zeros(len(images), dtype=torch.long)
    return finish(
        prune_by_lipschitz(net, images, labels, config=ClpConfig(**settings), generator=draw)
    )


def _backdoored(n_channels=16, gain=40.0):
    """Class 0 for all images, but class 1 where a pixel is above .9: one channel amplifies that."""
    net = nn.Sequential(
        nn.Conv2d(1, n_channels, 1, bias=False),
        nn.BatchNorm2d(n_channels),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(n_channels, 2),
    )
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight[-1] = gain
        net[1].running_mean[-1] = 0.9
        net[5].weight.zero_()
        net[5].weight[1, -1] = 1.0
        net[5].bias.copy_(torch.tensor([1.0, 0.0]))
    return net.eval().requires_grad_(False)


def _images(stamped):
    images = 0.8 * torch.rand((20, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    if stamped:
        images[:, :, 0, 0] = 1.0
    return images


def test_the_channel_that_amplifies_the_trigger_goes_and_clean_answers_stay():
    net = _backdoored()
    assert net(_images(stamped=True)).argmax(1).tolist() == [1] * 20
    pruned = _run(net, _images(stamped=False))
    assert pruned[1].weight.nonzero()[:, 0].tolist() == list(range(15))
    assert pruned(_images(stamped=True)).argmax(1).tolist() == [0] * 20
    assert torch.equal(pruned(_images(stamped=False)), net(_images(stamped=False)))


def test_only_the_shape_of_the_images_matters():
    net = _backdoored()
    first, second = (_run(net, images) for images in (torch.zeros(2, 1, 4, 4), _images(True)))
    assert torch.equal(first[1].weight, second[1].weight)


def test_a_layer_of_few_channels_has_none_that_stands_out():
    """Of n numbers none is above (n - 1) / sqrt(n) deviations: 2.85 for 10, and 3.02 for 11."""
    assert bool(_run(_backdoored(10), _images(False))[1].weight.all())
    assert not bool(_run(_backdoored(11), _images(False))[1].weight.all())
    assert not bool(_run(_backdoored(10), _images(False), u=2.0)[1].weight.all())


def test_the_bound_of_a_channel_is_the_norm_of_its_kernel_times_its_scale():
    draw = torch.Generator().manual_seed(1)
    convolution, norm = nn.Conv2d(3, 4, (2, 5)), nn.BatchNorm2d(4, eps=0.5)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=draw))
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
        norm.running_var.copy_(torch.tensor([0.5, 3.5, 1.0, 8.5]))
    norms = [
        np.linalg.svd(convolution.weight[channel].detach().numpy().reshape(3, 10))[1].max()
        for channel in range(4)
    ]
    expected = [norms[0], 2 * norms[1] / 2, 0.0, 3 * norms[3] / 3]
    assert channel_lipschitz(convolution, norm).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_batch_norm_belongs_to_the_convolution_that_ran_before_it():
    net = preactresnet18(3, width=4)
    names = {part: name for name, part in net.named_modules()}
    pairs = {
        names[norm]: names[convolution]
        for convolution, norm in _normalised_convolutions(net, torch.zeros(2, 3, 16, 16))
    }
    assert len(pairs) == 16  # all of them
    assert pairs["layer1.0.bn1"] == "conv1"
    assert pairs["layer1.0.bn2"] == "layer1.0.conv1"
    assert pairs["layer2.1.bn1"] == "layer2.0.conv2"  # and not the shortcut, declared behind it
    assert not any(part._forward_hooks for part in net.modules())


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(ModelError, match="behind a convolution"):
        _run(nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), torch.zeros(2, 1, 4, 4))
    with pytest.raises(DataError, match="expected images"):
        _run(_backdoored(), torch.zeros(1, 1, 4, 4))
    for u in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="u: expected"):
            ClpConfig(u=u)
