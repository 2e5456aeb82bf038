"""Which images are poisoned: those that a network, while it trains, forgets most often (FUS).

By chance is what attacks do themselves; here is what may take its place for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bdaudit.defenses.tuning import device_of
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.models import Classifier
from bdaudit.scoring import predict
from bdaudit.zoo.attacks import Poisoning
from bdaudit.zoo.training import TrainingConfig, train

__all__ = ["FusConfig", "count_forgetting", "forgetting_events", "most_first", "select_images"]

_BATCH = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class FusConfig:
    """Settings of the search for images that are worth poisoning.

    Attributes:
        n_rounds: Networks that are trained one after another, each on a poisoned set of its own.
        kept: Share of the poisoned images that is kept from round to round; the others are drawn
            anew.
        n_epochs: Of each of those networks; everything else is as the family trains.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_rounds: int = 5
    kept: float = 0.5
    n_epochs: int = 6

    def __post_init__(self) -> None:
        for name, least in (("n_rounds", 1), ("n_epochs", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not 0 < self.kept <= 1:
            raise ConfigError(f"kept: expected a share in (0, 1], got {self.kept}")


def select_images(
    poison: Callable[[Tensor | None], Steps[Poisoning]],
    new_classifier: Callable[[], Classifier],
    *,
    config: FusConfig,
    training: TrainingConfig,
    generator: torch.Generator,
) -> Steps[Tensor]:
    """Search for images that make a backdoor of few of them.

    Source: Xia et al., "Data-Efficient Backdoor Attacks" (FUS, IJCAI 2022): ten rounds of 70
    epochs, half kept, and after the last round too the other half is drawn by chance. Ours takes
    fewer and shorter rounds, counts by the answers after every epoch where theirs takes those
    given while the epoch runs, and stamps images in place where theirs adds stamped copies.

    Args:
        poison: Poisons the training images, those at the given places first.
        new_classifier: Builds a fresh network on the device of training.
        config: Settings.
        training: How the networks are trained, but for the epochs.
        generator: Seeded CPU generator.

    Returns:
        (M,) places of the images to keep, the most often forgotten first; as the next argument of
        `poison` they are joined by others drawn by chance.
    """
    preferred: Tensor | None = None
    for turn in range(config.n_rounds):
        poisoning = yield from poison(preferred)
        events = yield from count_forgetting(
            new_classifier(),
            poisoning,
            training=replace(training, epochs=config.n_epochs),
            generator=generator,
            title=f"selecting images, round {turn + 1} of {config.n_rounds}",
        )
        n_kept = max(1, round(config.kept * len(events)))
        preferred = poisoning.poisoned[most_first(events, generator)[:n_kept]]
    assert preferred is not None
    return preferred


def count_forgetting(
    classifier: Classifier,
    poisoning: Poisoning,
    *,
    training: TrainingConfig,
    generator: torch.Generator,
    title: str,
) -> Steps[Tensor]:
    """Train a network on a poisoned set and count how often each poisoned image is forgotten.

    Returns:
        (P,) counts on the processor, in the order of `poisoning.poisoned`.
    """
    images = poisoning.images[poisoning.poisoned]
    wanted = poisoning.labels[poisoning.poisoned].cpu()
    device, history = device_of(classifier), []
    steps = train(
        classifier,
        poisoning.images,
        poisoning.labels,
        config=training,
        generator=generator,
        title=title,
    )
    for progress in steps:
        if progress.done:  # epochs that are over
            mode = classifier.training
            classifier.eval()
            answers = predict(classifier, images, batch_size=_BATCH, device=device)
            history.append(answers.cpu() == wanted)
            classifier.train(mode)
        yield progress
    return forgetting_events(torch.stack(history))


def forgetting_events(history: Tensor) -> Tensor:
    """Count how often an answer that was right is wrong an epoch later.

    Args:
        history: (E, P) whether each of P images was answered rightly after each of E epochs.

    Returns:
        (P,) int64. An image that is never learned is never forgotten either.
    """
    return (history[:-1] & ~history[1:]).sum(dim=0)


def most_first(events: Tensor, generator: torch.Generator) -> Tensor:
    """Return (P,) places by their number of `events` (P,), most first, ties by chance."""
    mixed = torch.randperm(len(events), generator=generator)
    return mixed[events[mixed].argsort(descending=True, stable=True)]
