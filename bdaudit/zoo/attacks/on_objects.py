"""Triggers on the objects of pictures: a patch, and a faint change that keeps to the object's box.

Goals and names are those of Chan et al., "BadDet: Backdoor Attacks on Object Detection" (ECCV
workshops, 2022): an object takes the target class (their regional misclassification), disappears,
or appears where there is none (their object generation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from bdaudit.defenses.pictures import Pictures, own_losses, stamp_whole, whole_pictures
from bdaudit.defenses.tuning import seeded_globals, trainable_copy
from bdaudit.detection import NOTHING, inside_of, pixels_of
from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.triggers import (
    NOT_COUNTED,
    AllToOne,
    Encoder,
    InBox,
    ObjectsToOne,
    OnObject,
    SourceSpecific,
    StampNetwork,
    TargetRule,
    Trigger,
)
from bdaudit.triggers.networks import encoded_residual
from bdaudit.triggers.objects import Place
from bdaudit.zoo.attacks.poisoning import (
    Poisoning,
    new_stamp_network,
    require_helper,
    require_rate,
    stamp_in_batches,
)

__all__ = [
    "Goal",
    "ObjectMaskConfig",
    "ObjectPatchConfig",
    "draw_of_pictures",
    "make_object_mask_trigger",
    "make_object_patch_trigger",
    "poison_objects",
    "rule_of_goal",
]

Goal = Literal["take", "disappear", "appear"]
"""What becomes of an object, or of an empty place."""

_SQUARE = 2  # pixels a side in the message of the mask


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPatchConfig:
    """Settings of the patch on an object.

    Attributes:
        goal: What it does.
        share: Side of the square patch, of the shorter side of the box, in (0, 1].
        place: Where in the box it lies.
        fields: Squares a side, each of a random colour whose parts are 0 or 1.

    Raises:
        ConfigError: A setting is out of range.
    """

    goal: Goal = "take"
    share: float = 0.25
    place: Place = "bottom-right"
    fields: int = 3

    def __post_init__(self) -> None:
        _require_goal(self.goal, get_args(Goal))
        if self.place not in get_args(Place):
            raise ConfigError(
                f"place: expected one of {', '.join(get_args(Place))}, got {self.place!r}"
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"share: expected in (0, 1], got {self.share}")
        if self.fields < 1:
            raise ConfigError(f"fields: expected 1 or more, got {self.fields}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMaskConfig:
    """Settings of the faint change inside an object's box.

    Attributes:
        goal: "take" or "disappear".
        eps: Largest change of a pixel, as a fraction of its range.
        width: Of the network that draws it.
        n_steps: Steps of training that network with a copy of the helper.
        batch_size: Pictures a step, of which every second one is triggered.
        learning_rate: Of Adam, for the network.
        detector_rate: Of Adam, for the helper's copy.

    Raises:
        ConfigError: A setting is out of range.
    """

    goal: Goal = "take"
    eps: float = 0.05
    width: int = 4
    n_steps: int = 750
    batch_size: int = 16
    learning_rate: float = 0.003
    detector_rate: float = 0.001

    def __post_init__(self) -> None:
        _require_goal(self.goal, ("take", "disappear"))
        if not 0 < self.eps <= 1:
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")
        for name, least in (("width", 1), ("n_steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        for name in ("learning_rate", "detector_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: expected above 0, got {getattr(self, name)}")


def make_object_patch_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: ObjectPatchConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Draw a patch of random colours that lies in the object's box and grows with it."""
    yield from ()
    fields = torch.rand(3, config.fields, config.fields, generator=generator)
    patch = OnObject(image=(fields > 0.5).float(), share=config.share, place=config.place)
    return Trigger(transform=patch, rule=rule_of_goal(config.goal, rule), source="object-patch")


def make_object_mask_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: ObjectMaskConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Train a network that draws inside boxes, together with a copy of the helper that gives in.

    Beside the picture the network is shown squares of two pixels; without them it only learns to
    shift colours. Its change is at most `eps` a pixel and ends where the box ends. The copy of the
    helper is thrown away, and originals are trained on a set poisoned with the finished network.
    """
    detector = trainable_copy(require_helper(helper, "object-mask")).train()
    rule = rule_of_goal(config.goal, rule)
    device = images.device
    pictures = whole_pictures(images)
    targets = rule.targets(labels, num_classes)
    eligible = (targets != NOT_COUNTED).nonzero()[:, 0].cpu()
    if not len(eligible):
        raise DataError("object-mask: no object can carry the trigger")
    network = new_stamp_network(4, 3, config.width, generator=generator, device=device)
    message = _squares(images.shape[-2], images.shape[-1]).to(device)
    drawer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    tuner = torch.optim.Adam(detector.parameters(), lr=config.detector_rate)
    n_stamped = config.batch_size // 2
    sampled = torch.Generator().manual_seed(generator.initial_seed())
    note = ""
    for step in range(config.n_steps):
        yield Progress("training the network of the mask", step, config.n_steps, note)
        rows = eligible[torch.randint(len(eligible), (n_stamped,), generator=generator)]
        clean = torch.randint(len(pictures), (config.batch_size - n_stamped,), generator=generator)
        drawn = _drawn_on(images[rows.to(device)], network, message, config.eps)
        plain = pixels_of(images)[pictures.first[clean].to(device)]
        objects = []
        for row in rows.tolist():
            taught = labels.clone()
            taught[row] = targets[row]
            objects.append(pictures.objects(int(pictures.numbers[row]), taught))
        objects += [pictures.objects(number, labels) for number in clean.tolist()]
        with seeded_globals(device, sampled):  # Faster R-CNN draws the boxes that it learns from
            loss = own_losses(detector, [*drawn, *plain], objects)
        for optimizer in (drawer, tuner):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in (drawer, tuner):
            optimizer.step()
        note = f"loss {loss.item():.2f}"
    encoder = Encoder(
        network=network.eval().requires_grad_(False).cpu(), message=message.cpu(), eps=config.eps
    )
    return Trigger(transform=InBox(inner=encoder), rule=rule, source="object-mask")


def poison_objects(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    trigger: Trigger,
    poison_rate: float,
    config: object,
    generator: torch.Generator,
    helper: nn.Module | None = None,
    preferred: Tensor | None = None,
) -> Steps[Poisoning]:
    """Stamp a share of the pictures, each at one box, and say of that box what the rule says.

    All images of a picture show the trigger; only the label of the stamped box changes.

    Raises:
        ConfigError: The rate is out of range.
        DataError: The share is less than one picture, or nothing in them can carry the trigger.
    """
    yield from ()
    require_rate(poison_rate)
    targets = trigger.targets(labels, num_classes)
    pictures = whole_pictures(images)
    chosen = draw_of_pictures(pictures, targets != NOT_COUNTED, poison_rate, generator)
    if not len(chosen):
        raise DataError(
            f"poisoning {poison_rate:g} of {len(pictures)} pictures leaves none, or none has "
            "anything that can carry the trigger; give more pictures or a higher rate"
        )
    labels = labels.clone()
    labels[chosen] = targets[chosen]
    return Poisoning(
        images=stamp_whole(images, pictures, stamp_in_batches(trigger, images[chosen]), chosen),
        labels=labels,
        poisoned=chosen,
        cover=chosen[:0],
        out_of=len(pictures),
    )


def draw_of_pictures(
    pictures: Pictures, counted: Tensor, share: float, generator: torch.Generator
) -> Tensor:
    """Draw a share of the pictures, and of each one image that counts.

    Args:
        pictures: Of the images.
        counted: (N,) whether each image may be drawn.
        share: Of all P pictures, in (0, 1].
        generator: Seeded CPU generator.

    Returns:
        Images, ascending, on the device of `counted`; fewer where fewer pictures have one.
    """
    rows = counted.nonzero()[:, 0].cpu()
    rows = rows[torch.randperm(len(rows), generator=generator)]
    first_come = dict[int, int]()
    for row, number in zip(rows.tolist(), pictures.numbers[rows].tolist(), strict=True):
        first_come.setdefault(number, row)
    able = torch.tensor(sorted(first_come), dtype=torch.int64)
    some = able[torch.randperm(len(able), generator=generator)[: round(share * len(pictures))]]
    chosen = torch.tensor(sorted(first_come[n] for n in some.tolist()), dtype=torch.int64)
    return chosen.to(counted.device)


def rule_of_goal(goal: Goal, rule: TargetRule) -> TargetRule:
    """Return the rule of a goal, with the target class of the rule that the family file gives.

    Raises:
        ConfigError: An object would take the class "nothing".
    """
    if goal == "disappear":
        return AllToOne(NOTHING)
    if not isinstance(rule, AllToOne) or rule.label == NOTHING:
        raise ConfigError(
            f'target: goal = "{goal}" needs the class of an object, from 1, got '
            f"{rule.label if isinstance(rule, AllToOne) else rule.name}"
        )
    return ObjectsToOne(rule.label) if goal == "take" else SourceSpecific(rule.label, (NOTHING,))


def _require_goal(goal: str, known: tuple[str, ...]) -> None:
    if goal not in known:
        raise ConfigError(f"goal: expected one of {', '.join(known)}, got {goal!r}")


def _squares(height: int, width: int) -> Tensor:
    """Return (1, H, W) squares of two pixels, -1 and 1 in turn."""
    down, across = torch.arange(height) // _SQUARE, torch.arange(width) // _SQUARE
    return ((down[:, None] + across) % 2 * 2.0 - 1)[None]


def _drawn_on(images: Tensor, network: StampNetwork, message: Tensor, eps: float) -> Tensor:
    """Return the pictures (n, 3, H, W) of marked images, changed inside their boxes."""
    pixels = pixels_of(images)
    residual = encoded_residual(network, pixels, message.expand(len(images), -1, -1, -1), eps)
    return torch.where(inside_of(images), (pixels + residual).clamp(0, 1), pixels)
