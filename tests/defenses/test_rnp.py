"""RNP: what unlearning leaves, which masks fall, and that bad settings are refused."""

import pytest
import torch
from torch import nn

from bdaudit.defenses.forgetting import forget, negated_cross_entropy
from bdaudit.defenses.rnp import RnpConfig, _recover
from bdaudit.defenses.tuning import trainable_copy
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import finish


@pytest.mark.slow
def test_unlearning_clean_images_leaves_the_trigger_at_work(victim):
    """The premise: without its task the network is bare, and what answers is the backdoor."""
    unlearned = trainable_copy(victim.classifier)
    steps = forget(
        unlearned,
        *victim.clean,
        loss=negated_cross_entropy,
        learning_rate=0.01,
        batch_size=128,
        max_epochs=20,
        generator=torch.Generator().manual_seed(0),
        title="unlearning",
        rate_setting="unlearning_rate",
        weight_decay=5e-4,
        max_norm=20.0,
    )
    finish(steps)
    assert victim.accuracy(unlearned) < 0.4  # from .97
    assert victim.asr(unlearned) > 0.6


def _unlearned():
    """Two classes by brightness. Channel 0 tells them apart; channel 1 was turned against that."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False),
        nn.BatchNorm2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[4].weight.copy_(torch.tensor([[-1.0, 2.0], [1.0, -2.0]]))
        net[4].bias.zero_()
    return net


def test_the_mask_of_a_neuron_that_works_against_the_task_falls():
    labels = torch.arange(20) % 2
    images = (0.2 + 0.6 * labels.float())[:, None, None, None].expand(-1, 1, 4, 4)
    net = _unlearned()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    config = RnpConfig(recovery_rate=0.2, recovery_epochs=40, alpha=1.0)
    (mask,) = finish(
        _recover(net, images, labels, config, torch.Generator().manual_seed(0), "recovery")
    )
    assert float(mask[0]) == 1.0
    assert float(mask[1]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert torch.equal(net[1].running_mean, torch.zeros(2))  # and the statistics are left alone


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_images": 1}, "n_images"),
        ({"unlearning_rate": 0.0}, "unlearning_rate"),
        ({"max_unlearning_epochs": 0}, "max_unlearning_epochs"),
        ({"recovery_rate": float("inf")}, "recovery_rate"),
        ({"recovery_epochs": 0}, "recovery_epochs"),
        ({"alpha": 0.0}, "alpha"),
        ({"batch_size": 1}, "batch_size"),
        ({"threshold": 1.5}, "threshold"),
        ({"max_acc_loss": 1.0}, "max_acc_loss"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        RnpConfig(**settings)
