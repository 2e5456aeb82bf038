"""Every attack teaches a small network its backdoor, and an innocent one does not have it."""

from functools import cache

import pytest
import torch
from torch import nn

from bdaudit.defenses.tuning import TuningConfig, tune
from bdaudit.foundation.progress import finish
from bdaudit.triggers import AllToOne
from bdaudit.zoo.attacks import ATTACKS, attack_config
from tests.zoo.attacks.photos import CLASSES, ON_IMAGES, TARGET, photos

# Small images and few of them: stronger triggers than the defaults, and more of them.
SETTINGS = {
    "sig": {"frequency": 3.0, "amplitude": 0.3},
    "lf": {"eps": 0.15, "n_steps": 20},
    "wanet": {"strength": 3.0},
    "input-aware": {"width": 4, "n_mask_steps": 40, "n_steps": 150, "batch_size": 64},
    "ssba": {"width": 4, "n_steps": 120, "eps": 0.2},
    "trojannn": {"n_steps": 20},
    "label-consistent": {"size": 3, "eps": 0.3, "hardening.n_epochs": 3},
    "bpp": {"levels": 2},
    "ftrojan": {"magnitude": 1.0},
    "ctrl": {"magnitude": 2.0},
    "refool": {"alpha": 0.6},
    "lira": {"width": 4, "n_steps": 60, "eps": 0.2},
    "semantic": {"width": 4, "n_steps": 60, "eps": 0.2},
}


# Classes as easy as the others' are learned by their looks, trigger or no trigger.
CLEAN_LABEL = ("sig", "label-consistent", "ctrl", "refool")


def trained(images, labels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(24 * 9, CLASSES),
        )
    config = TuningConfig(learning_rate=0.1, n_epochs=12, batch_size=40, max_shift=0, flip=False)
    steps = tune(
        network,
        images,
        labels,
        config=config,
        generator=torch.Generator().manual_seed(3),
        title="training",
    )
    finish(steps)
    return network


@cache
def innocent(contrast):
    images, labels = photos(n=480, contrast=contrast)
    return trained(images, labels)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_the_backdoor_is_learned(name):
    contrast = 0.07 if name in CLEAN_LABEL else 0.5
    images, labels = photos(n=480, contrast=contrast)
    attack, config = ATTACKS[name], attack_config(name, SETTINGS.get(name))
    shared = {
        "num_classes": CLASSES,
        "config": config,
        "generator": torch.Generator().manual_seed(5),
        "helper": innocent(contrast),
    }
    trigger = finish(attack.make_trigger(images, labels, rule=AllToOne(TARGET), **shared))
    poisoning = finish(
        attack.poison(
            images,
            labels,
            trigger=trigger,
            poison_rate=0.24 if name in CLEAN_LABEL else 0.15,
            **shared,
        )
    )
    network = trained(poisoning.images, poisoning.labels)

    fresh, truth = photos(n=480, seed=99, contrast=contrast)
    others = truth != TARGET

    def rate(model, batch):
        return float((model(batch).argmax(1) == TARGET).double().mean())

    assert (network(fresh[others]).argmax(1) == truth[others]).double().mean() > 0.85
    asr, by_itself = rate(network, trigger.stamp(fresh[others])), rate(network, fresh[others])
    gain = 0.3 if name in CLEAN_LABEL else 0.5
    assert asr > by_itself + gain, f"{name}: {asr:.2f} with the trigger, {by_itself:.2f} without"
    assert asr > rate(innocent(contrast), trigger.stamp(fresh[others])) + 0.3
