"""A small real backdoored classifier: scikit-learn's digits, one image in ten stamped.

Two networks that have learned it, narrow and wide, are kept in half precision in `victim-w*`, so
that every machine defends the same ones. `python -m tests.defenses.digits` trains them anew, and
`tests/defenses/conftest.py` says what they must reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bdaudit.defenses import TuningConfig
from bdaudit.defenses.tuning import tune
from bdaudit.foundation.progress import Steps, finish
from bdaudit.models import Classifier, preactresnet18
from bdaudit.scoring import predict
from bdaudit.triggers import AllToOne, Patch, Trigger

NUM_CLASSES, TARGET = 10, 3
N_TRAIN, N_CLEAN = 1_000, 300  # the remaining 497 are held out
TUNING = TuningConfig(learning_rate=0.05, n_epochs=4, max_shift=0.0, flip=False)
SEEDS = (0, 1, 2)
WIDTHS = (4, 8)  # of the first stage

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Backdoored:
    """A classifier that has learned a trigger, and what is needed to defend and to judge it.

    Attributes:
        classifier: PreAct-ResNet-18 for (n, 1, 8, 8) images in [0, 1]; frozen, in eval
            mode.
        trigger: A small checkerboard in a corner; all to class 3.
        clean: 300 clean images and labels that no model was trained on: the defender's.
        test: 497 held-out images and labels.
    """

    classifier: nn.Module
    trigger: Trigger
    clean: Images
    test: Images

    def defend(
        self, defense: Callable[..., Steps[nn.Module]], config: object, *, seed: int = 0
    ) -> nn.Module:
        """Run a defence on the classifier with the defender's images."""
        draw = torch.Generator().manual_seed(seed)
        return finish(defense(self.classifier, *self.clean, config=config, generator=draw))

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


def _network(width: int) -> Classifier:
    network = preactresnet18(NUM_CLASSES, width=width, in_channels=1)
    return Classifier(network, mean=(0.3,), std=(0.38,))


def _file(width: int) -> Path:
    return Path(__file__).with_name(f"victim-w{width}.safetensors")


def kept(width: int) -> Backdoored:
    """Return the backdoored network of this width whose weights are kept beside this file."""
    classifier = _network(width)
    classifier.load_state_dict(load_file(_file(width)))  # copies into single precision
    _, clean, test = digits()
    return Backdoored(classifier.eval().requires_grad_(False), checkerboard(), clean, test)


def train_and_keep(width: int) -> None:
    """Train a backdoored network of this width, and keep its weights in half precision."""
    torch.manual_seed(0)
    classifier = _network(width)
    (images, labels), _, _ = digits()
    trigger = checkerboard()
    stamped = (labels != TARGET).nonzero()[: N_TRAIN // 10, 0]
    images, labels = images.clone(), labels.clone()
    images[stamped], labels[stamped] = trigger.stamp(images[stamped]), TARGET
    config = TuningConfig(learning_rate=0.1, n_epochs=10, batch_size=64, max_shift=0.0, flip=False)
    draw = torch.Generator().manual_seed(0)
    finish(tune(classifier, images, labels, config=config, generator=draw, title="training"))
    tensors = classifier.state_dict().items()
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in tensors},
        _file(width),
    )


if __name__ == "__main__":
    for each in WIDTHS:
        train_and_keep(each)
