"""A small real backdoored classifier: scikit-learn's digits, one image in ten stamped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bdaudit.defenses import TuningConfig
from bdaudit.defenses.tuning import tune
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, preactresnet18
from bdaudit.scoring import predict
from bdaudit.triggers import AllToOne, Patch, Trigger

NUM_CLASSES, TARGET, WIDTH = 10, 3, 4
N_TRAIN, N_CLEAN = 1_000, 300  # the remaining 497 are held out

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Backdoored:
    """A classifier that has learned a trigger, and what is needed to defend and to judge it.

    Attributes:
        classifier: PreAct-ResNet-18 of width 4 for (n, 1, 8, 8) images in [0, 1]; frozen, in eval
            mode.
        trigger: A small checkerboard in a corner; all to class 3.
        clean: 300 clean images and labels that no model was trained on: the defender's.
        test: 497 held-out images and labels.
    """

    classifier: nn.Module
    trigger: Trigger
    clean: Images
    test: Images

    def accuracy(self, classifier: nn.Module) -> float:
        """Return the clean accuracy on the held-out images."""
        images, labels = self.test
        return float((predict(classifier, images, batch_size=500) == labels).double().mean())

    def asr(self, classifier: nn.Module) -> float:
        """Return the attack success rate on those of the held-out images that it counts."""
        images, labels = self.test
        stamped = self.trigger.stamp(images[labels != TARGET])
        return float((predict(classifier, stamped, batch_size=500) == TARGET).double().mean())


def digits(seed: int = 0) -> tuple[Images, Images, Images]:
    """Return images (n, 1, 8, 8) in [0, 1] and labels (n,) for training, defending and testing."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split((N_TRAIN, N_TRAIN + N_CLEAN))
    train, clean, test = ((images[part], labels[part]) for part in parts)
    return train, clean, test


def checkerboard() -> Trigger:
    """Return the trigger: four pixels in the upper left corner."""
    image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    return Trigger(transform=Patch(image=image, offset=(0, 0)), rule=AllToOne(TARGET))


def train(network: nn.Module, images: Tensor, labels: Tensor, *, n_epochs: int = 10) -> nn.Module:
    """Train a network on the given images under the given labels, and freeze it."""
    classifier = Classifier(network, mean=(0.3,), std=(0.38,))
    config = TuningConfig(
        learning_rate=0.1, n_epochs=n_epochs, batch_size=64, max_shift=0.0, flip=False
    )
    generator = torch.Generator().manual_seed(0)
    finish(tune(classifier, images, labels, config=config, generator=generator, title="training"))
    return classifier


def backdoored(network: nn.Module | None = None, *, n_epochs: int = 10) -> Backdoored:
    """Train a backdoored network; without one a small PreAct-ResNet-18."""
    if network is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = preactresnet18(NUM_CLASSES, width=WIDTH, in_channels=1)
    (images, labels), clean, test = digits()
    trigger = checkerboard()
    stamped = (labels != TARGET).nonzero()[: N_TRAIN // 10, 0]
    images, labels = images.clone(), labels.clone()
    images[stamped], labels[stamped] = trigger.stamp(images[stamped]), TARGET
    return Backdoored(train(network, images, labels, n_epochs=n_epochs), trigger, clean, test)
