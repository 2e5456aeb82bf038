"""Small pictures in four classes, and every attack run on them at its cheapest."""

import torch

from bdaudit.foundation.progress import finish
from bdaudit.triggers import AllToOne
from bdaudit.zoo.attacks import ATTACKS, attack_config

N, CLASSES, TARGET = 240, 4, 2
ON_IMAGES = [
    name
    for name, attack in ATTACKS.items()
    if attack.task == "classification" and not attack.for_tables
]
QUICK = {
    "sig": {"frequency": 2.5},
    "lf": {"n_steps": 3},
    "input-aware": {"width": 2, "n_mask_steps": 2, "n_steps": 2, "batch_size": 16},
    "ssba": {"width": 2, "n_steps": 2},
    "trojannn": {"n_steps": 3},
    "label-consistent": {"size": 2, "n_steps": 2, "hardening.n_epochs": 1},
    "lira": {"width": 2, "n_steps": 2, "batch_size": 16},
    "semantic": {"width": 2, "n_steps": 2, "batch_size": 16},
    "object-mask": {"width": 2, "n_steps": 2, "batch_size": 4},
}


def photos(channels=1, side=12, seed=0, n=N, contrast=0.5):
    """Smooth random pictures whose class is the quarter that is brightest."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = 0.4 * torch.rand(n, channels, side, side, generator=generator)
    half = side // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = half * (label // 2), half * (label % 2)
        image[:, row : row + half, column : column + half] += contrast
    return images, labels


def linear_classifier(images, labels):
    """Ridge regression onto the classes: the clean helper of the attacks that want one."""
    flat = images.flatten(1)
    wanted = torch.nn.functional.one_hot(labels, CLASSES).float() - 1 / CLASSES
    weight = torch.linalg.solve(flat.T @ flat + 5 * torch.eye(flat.shape[1]), flat.T @ wanted)
    layer = torch.nn.Linear(flat.shape[1], CLASSES)
    layer.weight.data, layer.bias.data = 10 * weight.T.contiguous(), torch.zeros(CLASSES)
    return torch.nn.Sequential(torch.nn.Flatten(), layer).eval().requires_grad_(False)


def convolutional_classifier(images, labels):
    """The same on the feature maps of two convolutions that nobody trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        features = torch.nn.Sequential(
            torch.nn.Conv2d(images.shape[1], 6, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(6, 8, 3, stride=2, padding=1),
        ).requires_grad_(False)
    return torch.nn.Sequential(features, *linear_classifier(features(images), labels)).eval()


def helper_of(name, images, labels):
    """The clean helper of an attack, where it wants one."""
    if not ATTACKS[name].needs_helper:
        return None
    return (convolutional_classifier if name == "semantic" else linear_classifier)(images, labels)


def run(name, *, rule=None, poison_rate=0.1, channels=1, seed=7, settings=None):
    images, labels = photos(channels)
    attack = ATTACKS[name]
    config = attack_config(name, QUICK.get(name, {}) | (settings or {}))
    helper = helper_of(name, images, labels)
    generator = torch.Generator().manual_seed(seed)
    shared = {
        "num_classes": CLASSES,
        "config": config,
        "generator": generator,
        "helper": helper,
    }
    before = images.clone()
    trigger = finish(attack.make_trigger(images, labels, rule=rule or AllToOne(TARGET), **shared))
    poisoning = finish(
        attack.poison(images, labels, trigger=trigger, poison_rate=poison_rate, **shared)
    )
    assert torch.equal(images, before)
    return images, labels, trigger, poisoning
