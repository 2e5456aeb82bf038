"""What every attack's poisoned training set has in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import refuse_cached_autocast
from bdaudit.errors import ConfigError, DataError
from bdaudit.triggers import NOT_COUNTED, StampNetwork, Trigger

__all__ = [
    "NO_MESSAGE",
    "Poisoning",
    "draw_cover",
    "draw_images",
    "draw_others",
    "make_poisoning",
    "new_stamp_network",
    "require_helper",
    "require_rate",
    "require_target",
    "stamp_in_batches",
]

_BATCH = 256

NO_MESSAGE = torch.zeros(1, 1, 1)
"""What an encoder reads that hides no message, and draws from the image alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Poisoning:
    """A poisoned training set.

    Attributes:
        images: (N, C, H, W) in [0, 1], in the order of the clean ones.
        labels: (N,) what the network is taught.
        poisoned: (P,) where images carry the trigger, ascending.
        cover: (Q,) where images carry something like it under their true label, ascending; the
            attacks that use such images say what for.
        out_of: How many could have carried it, where that are not all images but all pictures.
    """

    images: Tensor
    labels: Tensor
    poisoned: Tensor
    cover: Tensor
    out_of: int | None = None

    @property
    def poison_rate(self) -> float:
        """Share of the images, or pictures, that carry the trigger, in (0, 1]."""
        return len(self.poisoned) / (self.out_of or len(self.labels))


def make_poisoning(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    generator: torch.Generator,
    clean_label: bool = False,
    before: Tensor | None = None,
    preferred: Tensor | None = None,
) -> Poisoning:
    """Stamp a share of the images and give those the label that the trigger's rule asks for.

    Args:
        images: (N, C, H, W) clean training images in [0, 1]; left as they are.
        labels: (N,) their true labels.
        num_classes: Classes of the task.
        trigger: What is stamped, with the target rule.
        poison_rate: Share of all N images, in (0, 1]. Only images that the rule counts are
            stamped; where there are fewer of them, all of them are.
        generator: Seeded CPU generator that is drawn from.
        clean_label: Stamp images of the target class, whose label need not change, instead.
        before: (N, C, H, W) images of which the chosen ones are stamped in place of the clean ones.
        preferred: (M,) places of images that are stamped first, where they count.

    Raises:
        ConfigError: The rate is out of range, or `clean_label` and the rule has no one target.
        DataError: The share is less than one image, or none counts.
    """
    require_rate(poison_rate)
    if clean_label:
        counted = labels == require_target(trigger)
        targets = labels
    else:
        targets = trigger.targets(labels, num_classes)
        counted = targets != NOT_COUNTED
    n_wanted = round(poison_rate * len(labels))
    chosen = draw_images(counted, n_wanted, generator, preferred=preferred)
    if not len(chosen):
        raise DataError(
            f"poisoning {poison_rate:g} of {len(labels)} images, of which {int(counted.sum())} can "
            "carry the trigger, leaves none; give more images or a higher rate"
        )
    source = images if before is None else before
    images, labels = images.clone(), labels.clone()
    images[chosen] = stamp_in_batches(trigger, source[chosen])
    labels[chosen] = targets[chosen]
    return Poisoning(images=images, labels=labels, poisoned=chosen, cover=chosen[:0])


def draw_images(
    eligible: Tensor, n: int, generator: torch.Generator, *, preferred: Tensor | None = None
) -> Tensor:
    """Draw at most `n` of the places where `eligible` (N,) is true, and return them ascending.

    Those of `preferred` (M,), each named once, come first and in their order.
    """
    first = torch.zeros(0, dtype=torch.int64, device=eligible.device)
    if preferred is not None:
        preferred = preferred.to(eligible.device)
        first = preferred[eligible[preferred]][:n]
        eligible = eligible.clone()
        eligible[first] = False
    places = eligible.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator)[: n - len(first)]
    return torch.cat([first, places[order.to(places.device)]]).sort().values


def draw_cover(poisoning: Poisoning, ratio: float, generator: torch.Generator) -> Tensor:
    """Draw images to cover the poisoned ones, `ratio` for each of those and none of them."""
    left = torch.ones_like(poisoning.labels, dtype=torch.bool)
    left[poisoning.poisoned] = False
    return draw_images(left, round(ratio * len(poisoning.poisoned)), generator)


def draw_others(places: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw for each of `places` (Q,) another one below `n`, never itself."""
    apart = torch.randint(1, n, (len(places),), generator=generator).to(places.device)
    return (places + apart) % n


def stamp_in_batches(trigger: Trigger, images: Tensor) -> Tensor:
    """Stamp (N, C, H, W) images, so many at a time that no trigger needs much memory."""
    return torch.cat([trigger.stamp(batch) for batch in torch.split(images, _BATCH)])


def new_stamp_network(
    in_channels: int,
    out_channels: int,
    width: int,
    *,
    generator: torch.Generator,
    device: torch.device,
) -> StampNetwork:
    """Build a trigger's network, to be trained, with weights drawn from `generator`.

    Raises:
        ConfigError: It would be trained inside an autocast that caches its casts.
    """
    refuse_cached_autocast(device.type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return StampNetwork(in_channels, out_channels, width).to(device)


def require_rate(poison_rate: float) -> None:
    """Raise a ConfigError unless the rate is a share above 0."""
    if not 0 < poison_rate <= 1:
        raise ConfigError(f"poison_rate: expected a share in (0, 1], got {poison_rate}")


def require_target(trigger: Trigger) -> int:
    """Return the trigger's one target class, or raise a ConfigError."""
    if trigger.target_label is None:
        raise ConfigError(
            "target rule: a clean-label attack poisons images of one target class, got the rule "
            f"{trigger.rule.name!r}"
        )
    return trigger.target_label


def require_helper(helper: nn.Module | None, attack: str) -> nn.Module:
    """Return the clean classifier an attack needs, or raise a ConfigError."""
    if helper is None:
        raise ConfigError(f"attack {attack}: expected a clean classifier as its helper, got none")
    return helper
