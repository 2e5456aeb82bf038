"""The disjoint parts of a data set that a family is made with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.data import Sample, load_objects, load_sample, stratified_indices
from bdaudit.data.classes import absent_classes, agree_on_classes, shown
from bdaudit.detection import PIXELS, Places
from bdaudit.errors import DataError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.zoo.manifest import DataTable
from bdaudit.zoo.seeds import derive_seed

__all__ = ["Part", "Parts", "load_parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """Clean images of one use; of pictures with objects marked ones, one for each box.

    Attributes:
        pixels: (N, C, H, W) uint8: what a family keeps and hands to its workers; a mark is 255.
        labels: (N,) int64.
        sha256: Digest over both.
        places: Of marked images: which box of which picture each asks about.
    """

    pixels: Tensor
    labels: Tensor
    sha256: str
    places: Places | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def size(self) -> int:
        """Number of pictures, of which each may be several images, one for each of its boxes."""
        return len(self) if self.places is None else len(torch.unique(self.places.pictures))

    def draw(self, limit: int | None, generator: torch.Generator) -> Tensor:
        """Draw at most `limit` images, or pictures with all their boxes, and say where they are."""
        if self.places is None:
            return torch.randperm(len(self), generator=generator)[:limit]
        numbers = torch.unique(self.places.pictures)
        chosen = numbers[torch.randperm(len(numbers), generator=generator)[:limit]]
        return torch.isin(self.places.pictures, chosen).nonzero()[:, 0]

    def images(self, indices: Tensor | None = None) -> Tensor:
        """Return the images (N, C, H, W), or those at `indices`, as float32 in [0, 1]."""
        return (self.pixels if indices is None else self.pixels[indices]).float() / 255

    def as_sample(self, source: str) -> Sample:
        """Return the part as a sample."""
        return Sample(
            images=self.images(),
            labels=self.labels,
            names=tuple(map(str, range(len(self)))),
            class_names=None,
            source=source,
            sha256=self.sha256,
            places=self.places,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A data set dealt out; no image is in two parts, not even as a copy.

    Attributes:
        pool: What models are trained on.
        defense: What defenders have.
        sample: What the auditor gets.
        measure: What rates in `family.json` are measured on.
        num_classes: Classes of the task.
        class_names: In order of index, `None` when unknown.
        notes: What of the data set was dropped, ignored, converted or guessed.
    """

    pool: Part
    defense: Part
    sample: Part
    measure: Part
    num_classes: int
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pool.pixels.shape[1:]
        return int(channels), int(height), int(width)


def load_parts(data: DataTable, *, seed: int) -> Parts:
    """Read a data set and deal it out.

    The pool and the defender's images come from the training part, the other two from the test
    part, drawn by `seed`; images are stratified by class, pictures with objects are not. How many
    the later of two takes does not change the earlier. Copies of an image that was dealt already
    are left out.

    Args:
        data: Where it is, and how many images each part has.
        seed: Of the draws.

    Raises:
        DataError: The data set cannot be read, has too few images, its two parts are the same, or
            do not have the same classes.
    """
    train, test = _load(data, seed)
    names = train.class_names
    num_classes = _count_classes(train, test)
    seen: set[bytes] = set()
    deal = _deal if data.task == "classification" else _deal_pictures
    pool, defense = deal(train, (data.pool, data.defense), ("pool", "defense"), seen, seed)
    sample, measure = deal(test, (data.sample, data.measure), ("sample", "measure"), seen, seed)
    return Parts(
        pool=pool,
        defense=defense,
        sample=sample,
        measure=measure,
        num_classes=num_classes,
        class_names=names,
        notes=tuple(f"{part.source}: {note}" for part in (train, test) for note in part.notes),
    )


def _load(data: DataTable, seed: int) -> tuple[Sample, Sample]:
    """Read the training and the test part, in the same shape."""
    shape = data.image_shape
    train_path, test_path = data.train or data.path, data.test or data.path
    assert train_path is not None
    assert test_path is not None
    load = load_objects if data.task == "detection" else load_sample
    train = load(train_path, image_shape=shape, split="train", seed=seed)
    shape = shape or _shape_of(train)
    return train, load(test_path, image_shape=shape, split="test", seed=seed)


def _shape_of(sample: Sample) -> tuple[int, int, int]:
    return (sample.images.shape[1], sample.images.shape[2], sample.images.shape[3])


def _count_classes(train: Sample, test: Sample) -> int:
    """Return the number of classes, the same by both parts of a data set.

    Raises:
        DataError: They name classes differently, or one has images of a class the other lacks.
    """
    names = train.class_names
    if names is not None and test.class_names is not None:
        agree_on_classes(
            names,
            f"{train.source} ({train.classes_from})",
            test.class_names,
            f"{test.source} ({test.classes_from})",
        )
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    if names is not None:
        num_classes = max(len(names), num_classes)
    lacking = [
        f"{part.source} has no images of {shown(absent)}"
        for part in (train, test)
        if (absent := absent_classes(part.labels, num_classes, names))
    ]
    if lacking:
        raise DataError(
            f"expected images of all {num_classes} classes to train on and to measure on; "
            + "; ".join(lacking)
        )
    return num_classes


def _deal(
    source: Sample,
    wanted: Sequence[int | None],
    names: Sequence[str],
    seen: set[bytes],
    seed: int,
) -> list[Part]:
    pixels = (source.images * 255).round().to(torch.uint8)
    fresh = _first_copies(pixels, seen)
    left = fresh.nonzero()[:, 0]
    sizes = _sizes(wanted, len(source))
    _require_enough(source, sizes, names, len(left), len(source), "images")
    parts = []
    for size, name in zip(sizes, names, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, f"data {name}"))
        chosen = left[stratified_indices(source.labels[left], size, generator)]
        kept = torch.ones(len(source), dtype=torch.bool)
        kept[chosen] = False
        left = left[kept[left]]
        part, labels = pixels[chosen].contiguous(), source.labels[chosen]
        parts.append(Part(part, labels, digest_tensors({"images": part, "labels": labels})))
    return parts


def _deal_pictures(
    source: Sample,
    wanted: Sequence[int | None],
    names: Sequence[str],
    seen: set[bytes],
    seed: int,
) -> list[Part]:
    """Deal out pictures, each with the images of all its boxes."""
    places = source.places
    assert places is not None
    pixels = (source.images * 255).round().to(torch.uint8)
    # Grouped as they were read: copies of a picture are several pictures, of which one is dealt.
    rows_of = list(places.rows().values())
    firsts = torch.tensor([rows[0] for rows in rows_of])
    left = _first_copies(pixels[firsts, :PIXELS], seen).nonzero()[:, 0]
    sizes = _sizes(wanted, len(rows_of))
    _require_enough(source, sizes, names, len(left), len(rows_of), "pictures")
    generator = torch.Generator().manual_seed(derive_seed(seed, f"data {' '.join(names)}"))
    left = left[torch.randperm(len(left), generator=generator)]
    parts = []
    for chosen in torch.split(left[: sum(sizes)], sizes):
        # In random order, so that any run of images is of pictures drawn at random.
        rows = torch.tensor([row for place in chosen.tolist() for row in rows_of[place]])
        part, labels = pixels[rows].contiguous(), source.labels[rows]
        digest = digest_tensors({"images": part, "labels": labels})
        parts.append(Part(part, labels, digest, source.take(rows).places))
    return parts


def _sizes(wanted: Sequence[int | None], n_there: int) -> list[int]:
    """Say how large each part is; one that is not said takes what the others leave."""
    said = sum(size for size in wanted if size is not None)
    return [n_there - said if size is None else size for size in wanted]


def _require_enough(
    source: Sample, sizes: Sequence[int], names: Sequence[str], n_left: int, n_there: int, what: str
) -> None:
    if sum(sizes) <= n_left and min(sizes) > 0:
        return
    copies = n_there - n_left
    wanted = " and ".join(f"{n} of data.{name}" for n, name in zip(sizes, names, strict=True))
    raise DataError(
        f"{source.source}: {n_left} {what} are too few for {wanted}"
        + (f" ({copies} more are copies of {what} dealt already)" if copies else "")
        + "; ask for fewer, or give other folders as data.train and data.test"
    )


def _first_copies(pixels: Tensor, seen: set[bytes]) -> Tensor:
    """Return (N,) whether each image differs from all before it, here and in `seen`."""
    first = torch.ones(len(pixels), dtype=torch.bool)
    for place, image in enumerate(pixels.numpy()):
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        first[place] = digest not in seen
        seen.add(digest)
    return first
