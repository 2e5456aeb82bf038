"""Whole pictures for training object detectors, from the boxes a detector is asked about.

Whoever trains is given marked images, one for each box of a picture (`bdaudit.detection`), so that
attacks and defences take detectors as they take classifiers. A detector learns from whole pictures
with all their objects, though. Both say the same, as long as every box of a picture is there: the
images of one picture have the same pixels, and their labels say what is in each box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.defenses.tuning import Augment, Gradients, TuningConfig, augmented, backpropagate, tune
from bdaudit.detection import NOTHING, PIXELS, Asked, boxes_of, pixels_of
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Steps

__all__ = [
    "Lessons",
    "Objects",
    "Pictures",
    "detector_in",
    "lessons_of",
    "own_losses",
    "stamp_whole",
    "whole_pictures",
]

Objects = dict[str, Tensor]
"""The objects of a picture: `boxes` (M, 4) in whole pixels, and `labels` (M,) from 1."""

_LONGEST_GRADIENT = 10.0


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures that marked images (N, 4, H, W) show, in the order in which they come first.

    Attributes:
        numbers: (N,) the picture of each image, from 0.
        first: (P,) the first image of each picture.
        boxes: (N, 4) the box that each image asks about, on the device of the images.
        rows: Of each picture its images.
    """

    numbers: Tensor
    first: Tensor
    boxes: Tensor
    rows: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def objects(self, number: int, labels: Tensor) -> Objects:
        """Return the objects of a picture, where `labels` (N,) say what is in each box."""
        rows = self.rows[number].to(labels.device)
        there = rows[labels[rows] != NOTHING]
        return {"boxes": self.boxes[there], "labels": labels[there]}

    def images_of(self, numbers: Tensor) -> Tensor:
        """Return the images, ascending, of the pictures with these numbers."""
        return torch.isin(self.numbers, numbers).nonzero()[:, 0]


def whole_pictures(images: Tensor) -> Pictures:
    """Find out which marked images (N, 4, H, W) show the same picture: those of the same pixels."""
    seen: dict[bytes, int] = {}
    first, numbers = list[int](), list[int]()
    for row, pixels in enumerate(pixels_of(images).cpu()):
        digest = hashlib.blake2b(pixels.contiguous().numpy(), digest_size=16).digest()
        number = seen.setdefault(digest, len(seen))
        if number == len(first):
            first.append(row)
        numbers.append(number)
    found = torch.tensor(numbers, dtype=torch.int64)
    order = found.argsort(stable=True)
    return Pictures(
        numbers=found,
        first=torch.tensor(first, dtype=torch.int64),
        boxes=boxes_of(images),
        rows=torch.split(order, torch.bincount(found).tolist()),
    )


def stamp_whole(images: Tensor, pictures: Pictures, stamped: Tensor, chosen: Tensor) -> Tensor:
    """Put stamped images in the place of clean ones, in every image of their pictures.

    Args:
        images: (N, 4, H, W) marked; left as they are.
        pictures: Of those.
        stamped: (P, 4, H, W), with the trigger at the box that each asks about.
        chosen: (P,) where they go, at most one of a picture.

    Returns:
        (N, 4, H, W).
    """
    source = torch.full((len(pictures),), -1)
    source[pictures.numbers[chosen.cpu()]] = torch.arange(len(chosen))
    row = source[pictures.numbers].to(images.device)
    touched = row >= 0
    images = images.clone()
    images[touched, :PIXELS] = pixels_of(stamped)[row[touched]]
    return images


def detector_in(classifier: nn.Module) -> Asked | None:
    """Return the detector that a classifier is, or has as its network; `None` if it is none."""
    detector = getattr(classifier, "network", classifier)
    return detector if isinstance(detector, Asked) else None


def own_losses(
    classifier: nn.Module, pictures: Sequence[Tensor], objects: Sequence[Objects]
) -> Tensor:
    """Return the sum of a detector's own losses.

    Args:
        classifier: An `Asked`, or a classifier with one as its network, in training mode.
        pictures: Each (3, H, W) in [0, 1].
        objects: What each shows, on the same device.

    Raises:
        ModelError: The classifier is no detector, or resizes pictures before it sees them.
    """
    detector = detector_in(classifier)
    if detector is None:
        raise ModelError(f"expected an object detector, got {type(classifier).__name__}")
    size = getattr(classifier, "input_size", None)
    if size is not None and any(tuple(picture.shape[-2:]) != tuple(size) for picture in pictures):
        raise ModelError(
            f"a detector is tuned on pictures as they are, and this one resizes them to "
            f"{size[0]}x{size[1]}; give pictures of that size"
        )
    return torch.stack(list(detector.losses(pictures, objects).values())).sum()


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a model is tuned on, and how it is taught that.

    Attributes:
        images: (N, C, H, W) images, or (P, 3, H, W) whole pictures.
        answers: (N,) labels, or (P,) the pictures' numbers.
        backpropagate: Adds the gradient of the loss on a mini-batch: of the cross-entropy, or of a
            detector's own losses.
        augment: How a mini-batch is changed before.
        replayed: Whether a step may be replayed; a detector's losses look at their pictures.
    """

    images: Tensor
    answers: Tensor
    backpropagate: Gradients = backpropagate
    augment: Augment = augmented
    replayed: bool = True

    def tune(
        self,
        classifier: nn.Module,
        *,
        config: TuningConfig,
        generator: torch.Generator,
        title: str,
        gradients: Gradients | None = None,
        replayed: bool = False,
    ) -> Steps[None]:
        """Train in place, as `tuning.tune` does; by default with the plain gradient.

        A gradient of the caller's own is replayed only where `replayed` says that it may be.
        """
        yield from tune(
            classifier,
            self.images,
            self.answers,
            config=config,
            generator=generator,
            title=title,
            gradients=gradients or self.backpropagate,
            augment=self.augment,
            replayed=self.replayed and (gradients is None or replayed),
        )


def lessons_of(classifier: nn.Module, images: Tensor, labels: Tensor) -> Lessons:
    """Return what a classifier learns from: the images; and a detector: whole pictures.

    A detector that is only taught what is in single boxes forgets to find the others.

    Args:
        classifier: What is to be tuned.
        images: (N, C, H, W) in [0, 1]; marked ones for a detector, all boxes of each picture among
            them.
        labels: (N,) true labels.
    """
    if detector_in(classifier) is None:
        return Lessons(images, labels)
    pictures = whole_pictures(images)
    shown = [pictures.objects(number, labels) for number in range(len(pictures))]
    width = images.shape[-1]

    def backpropagate(classifier: nn.Module, batch: Tensor, numbers: Tensor) -> Tensor:
        objects = [
            {key: value.to(batch.device) for key, value in _of_number(shown, number, width).items()}
            for number in numbers.tolist()
        ]
        loss = own_losses(classifier, list(batch), objects)
        loss.backward()  # type: ignore[no-untyped-call]
        # A detector's first steps are wild, since it is wrong about so many boxes at once.
        nn.utils.clip_grad_norm_(classifier.parameters(), _LONGEST_GRADIENT)
        return loss.detach()

    return Lessons(
        images=pixels_of(images)[pictures.first.to(images.device)],
        answers=torch.arange(len(pictures)),
        backpropagate=backpropagate,
        augment=_flip_some,
        replayed=False,
    )


def _flip_some(
    pictures: Tensor, numbers: Tensor, config: TuningConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Flip half of the pictures left to right; the number of a flipped one is -1 - its number.

    Pictures are not shifted, which would cut their objects.
    """
    if not config.flip:
        return pictures, numbers
    flipped = (torch.rand(len(pictures), generator=generator) < 0.5).to(pictures.device)
    turned = torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)
    return turned, torch.where(flipped, -1 - numbers, numbers)


def _of_number(shown: Sequence[Objects], number: int, width: int) -> Objects:
    """Return the objects of a picture by its number, mirrored where it was flipped."""
    if number >= 0:
        return shown[number]
    objects = shown[-1 - number]
    left, top, right, bottom = objects["boxes"].unbind(1)
    return {**objects, "boxes": torch.stack((width - right, top, width - left, bottom), dim=1)}
