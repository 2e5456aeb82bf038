"""BAN fine-tuning: the backdoor goes, and the network stands the noise on its neurons."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bdaudit.defenses import BanConfig, FinetuneConfig, TuningConfig, ban_finetune, finetune
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.perturbation import neurons_of
from tests.defenses.pictures import pictures, small_net

TUNING = TuningConfig(learning_rate=0.05, n_epochs=4, max_shift=0.0, flip=False)


def _seeded():
    return torch.Generator().manual_seed(0)


def test_the_backdoor_goes_and_the_task_stays(victim):
    defended = finish(
        ban_finetune(
            victim.classifier,
            *victim.clean,
            config=BanConfig(tuning=TUNING),
            generator=_seeded(),
        )
    )
    plain = finish(
        finetune(
            victim.classifier,
            *victim.clean,
            config=FinetuneConfig(tuning=TUNING),
            generator=_seeded(),
        )
    )
    assert victim.asr(defended) < 0.15
    assert victim.asr(defended) < victim.asr(plain) - 0.1
    assert victim.accuracy(defended) > victim.accuracy(victim.classifier) - 0.04


def test_the_defended_network_answers_rightly_under_noise(victim):
    images, labels = victim.test

    def accuracy_under_noise(classifier):
        neurons = neurons_of(classifier)
        noise = neurons.still()
        for _ in range(10):
            noise = neurons.raise_loss(noise, *victim.clean, step=0.03, eps=0.3)
        with torch.no_grad():
            return float((neurons.answer(noise, images).argmax(1) == labels).double().mean())

    defended = finish(
        ban_finetune(
            victim.classifier,
            *victim.clean,
            config=BanConfig(tuning=TUNING),
            generator=_seeded(),
        )
    )
    assert accuracy_under_noise(defended) > accuracy_under_noise(victim.classifier) + 0.2


def test_without_weight_on_the_noise_it_is_fine_tuning():
    net, sample = small_net(), pictures(60, seed=2)
    # Without augmentation and in one mini-batch an epoch, so that the draws of noise in between
    # make no difference.
    tuning = replace(TUNING, batch_size=60, n_epochs=3)
    plain = finish(
        finetune(net, *sample, config=FinetuneConfig(tuning=tuning), generator=_seeded())
    )
    config = BanConfig(noise_weight=0.0, tuning=tuning)
    same = finish(ban_finetune(net, *sample, config=config, generator=_seeded()))
    for a, b in zip(plain.parameters(), same.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    # Batch norm's statistics are those of the passes without noise.
    assert torch.allclose(plain[1].running_mean, same[1].running_mean, atol=1e-5)
    assert torch.allclose(plain[1].running_var, same[1].running_var, atol=1e-5)


def test_a_network_without_normalisation_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match="normalisation layers"):
        finish(ban_finetune(net, *pictures(9, seed=0), config=BanConfig(), generator=_seeded()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": float("inf")}, "eps"),
        ({"n_steps": 0}, "n_steps"),
        ({"noise_weight": -0.1}, "noise_weight"),
        ({"noise_weight": float("nan")}, "noise_weight"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        BanConfig(**settings)
