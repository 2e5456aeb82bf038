"""Make a network forget its task: the first half of several defences."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.pruning import accuracy_on
from bdaudit.defenses.tuning import device_of, seeded_globals
from bdaudit.errors import NumericsError
from bdaudit.foundation.progress import Progress, Steps

__all__ = ["forget", "negated_cross_entropy"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (n, K) and true labels (n,) to what is lowered."""


def negated_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, negated: lowering it is gradient ascent on the task."""
    return -functional.cross_entropy(logits, labels)


def forget(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    generator: torch.Generator,
    title: str,
    rate_setting: str,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Steps[None]:
    """Train `classifier` in place, in train mode, until its accuracy is down to a guess.

    A guess is always to answer the commonest class. Not one over the number of classes: where
    classes differ in size, a network that has forgotten all and answers one class stays above that,
    and its weights would grow for ever.

    Args:
        classifier: Every parameter that requires a gradient is trained, by SGD with momentum 0.9.
        images: (N, C, H, W) in [0, 1]; left as they are, and not augmented.
        labels: (N,) true labels.
        loss: What is lowered.
        learning_rate: Of SGD.
        batch_size: Most images in a mini-batch; an epoch is dealt out evenly.
        max_epochs: Passes over the images after which it ends at the latest.
        generator: Seeded CPU generator.
        title: What `Progress` calls the step.
        rate_setting: The setting that an error says to lower.
        weight_decay: Of SGD.
        max_norm: Longest gradient over all parameters together; longer ones are shortened.

    Raises:
        NumericsError: The logits were not finite.
    """
    device = device_of(classifier)
    images, labels = images.to(device=device, dtype=torch.float32), labels.to(device)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    guess = int(labels.bincount().max()) / len(labels)
    for epoch in range(max_epochs):
        yield Progress(title, epoch, max_epochs)
        classifier.train()
        order = torch.randperm(len(labels), generator=generator)
        with seeded_globals(device, generator):
            for chosen in order.tensor_split(ceil(len(labels) / batch_size)):
                optimizer.zero_grad(set_to_none=True)
                harm = loss(classifier(images[chosen]).float(), labels[chosen])
                harm.backward()  # type: ignore[no-untyped-call]
                if max_norm is not None:
                    nn.utils.clip_grad_norm_(trained, max_norm)
                optimizer.step()
        try:
            accuracy = accuracy_on(classifier, images, labels)
        except NumericsError as error:
            raise NumericsError(
                f"{title}: {error} after {epoch + 1} epochs; lower {rate_setting} "
                f"({learning_rate:g})"
            ) from error
        if accuracy <= guess:
            break
    optimizer.zero_grad(set_to_none=True)
    yield Progress(title, max_epochs, max_epochs)
