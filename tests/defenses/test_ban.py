"""BAN fine-tuning: the backdoor goes, and what a step lowers."""

import copy
from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdaudit.defenses import BanConfig, FinetuneConfig, ban_finetune, finetune
from bdaudit.defenses.tuning import trainable_copy, tune
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.perturbation import neurons_of
from tests.defenses.digits import SEEDS, TUNING
from tests.defenses.pictures import NUM_CLASSES, pictures, small_net


def _seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.slow
def test_the_backdoor_goes_and_the_task_stays(victim, plain_asrs):
    config = BanConfig(tuning=TUNING)
    defended = [victim.defend(ban_finetune, config, seed=seed) for seed in SEEDS]
    asrs = [victim.asr(model) for model in defended]
    # Seeds apart: .08 to .27, after plain fine-tuning .55 to .66.
    assert mean(asrs) < mean(plain_asrs) - 0.2
    assert max(asrs) < max(plain_asrs)
    accuracies = [victim.accuracy(model) for model in defended]
    assert mean(accuracies) > victim.accuracy(victim.classifier) - 0.06


def test_a_step_lowers_the_loss_without_noise_and_the_loss_under_it():
    """Against a step by hand, with the noise multiplied into a copy of the network."""
    net, (images, labels) = small_net(), pictures(30, seed=2)
    labels = (labels + 1) % NUM_CLASSES  # wrong, for gradients far from 0
    tuning = replace(TUNING, n_epochs=1, batch_size=30, momentum=0.0, weight_decay=0.0, warm_up=0.0)
    config = BanConfig(eps=0.2, noise_weight=0.7, tuning=tuning)
    generator = _seeded()

    def shaken_gradients(model, noise, batch, answers):
        """Gradients by the noisy values, on a copy, so that the model keeps its statistics."""
        shaken = copy.deepcopy(model)
        for name, value in shaken.named_parameters():
            value.data *= 1 + noise.get(name, torch.tensor(0.0))
        functional.cross_entropy(shaken(batch), answers).backward()
        return {name: value.grad for name, value in shaken.named_parameters()}

    def by_hand(model, batch, answers):
        noise = neurons_of(model).random(0.2, generator)
        values = dict(model.named_parameters())
        uphill = shaken_gradients(model, noise, batch, answers)
        noise = {
            name: (part + 0.2 * (uphill[name] * values[name].detach()).sign()).clamp(-0.2, 0.2)
            for name, part in noise.items()
        }
        under_noise = shaken_gradients(model, noise, batch, answers)
        loss = functional.cross_entropy(model(batch), answers)
        loss.backward()
        for name, value in values.items():
            factor = 1 + noise.get(name, torch.tensor(0.0))
            value.grad += 0.7 * under_noise[name] * factor
        return loss.detach()

    expected = trainable_copy(net)
    steps = tune(
        expected,
        images,
        labels,
        config=tuning,
        generator=generator,
        title="by hand",
        gradients=by_hand,
    )
    finish(steps)
    found = finish(ban_finetune(net, images, labels, config=config, generator=_seeded()))
    plain = finish(
        finetune(net, images, labels, config=FinetuneConfig(tuning=tuning), generator=_seeded())
    )
    pairs = list(zip(expected.parameters(), found.parameters(), strict=True))
    assert all(torch.allclose(value, wanted, atol=1e-5) for wanted, value in pairs)
    # Else the noise would count for nothing here.
    assert not torch.allclose(plain[3].weight, found[3].weight, atol=1e-3)


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
