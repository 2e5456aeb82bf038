"""Stratified choice: subsets of a sample, and its craft and held-out halves.

Perturbations are made on the craft half and every reported rate comes from the held-out half; the
two never share an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.data.sample import Sample
from bdaudit.errors import ConfigError, DataError

__all__ = ["Split", "split_sample", "stratified_indices"]


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint parts of one sample.

    Attributes:
        craft: What perturbations are made on.
        held_out: What every reported rate comes from.
    """

    craft: Sample
    held_out: Sample


def split_sample(
    sample: Sample, *, n_craft: int, n_held_out: int | None = None, seed: int
) -> Split:
    """Split a sample into craft and held-out halves, stratified by label.

    Where several images ask about boxes of one picture (`sample.places`), no picture has boxes in
    both halves. Both sizes hold all the same. Every class has its share in the craft half as far as
    whole pictures allow, which is exact unless nearly all boxes are asked for; of a picture in the
    craft half, boxes beyond the share of their class are in neither half.

    Args:
        sample: What is split.
        n_craft: Images to craft on, at least 1.
        n_held_out: Images to score on, at least 1; `None` takes all that are left.
        seed: The same seed and sample give the same split.

    Returns:
        Disjoint halves, each in random order, so that any run of images is a mixed mini-batch. In
        the craft half every class is within one image of its share of the sample, in the held-out
        half within one image of its share of what the craft half left.

    Raises:
        ConfigError: A count is below 1.
        DataError: The sample has too few images, or too few in other pictures than those that the
            craft half needs.
    """
    if n_craft < 1 or (n_held_out is not None and n_held_out < 1):
        raise ConfigError(
            f"expected n_craft and n_held_out of at least 1, got {n_craft} and {n_held_out}"
        )
    needed = n_craft + (n_held_out or 1)
    if needed > len(sample):
        raise DataError(
            f"{sample.source}: {len(sample)} images are too few for {n_craft} to craft on and "
            f"{n_held_out or 'at least 1'} held out; give more images or ask for fewer"
        )
    generator = torch.Generator().manual_seed(seed)
    if sample.places is None:
        craft = stratified_indices(sample.labels, n_craft, generator)
        left = torch.ones(len(sample), dtype=torch.bool)
        left[craft] = False
    else:
        craft, left = _craft_of_pictures(
            sample, sample.places.pictures, n_craft, n_held_out or 1, generator
        )
    rest = left.nonzero()[:, 0]
    chosen = stratified_indices(sample.labels[rest], n_held_out or len(rest), generator)
    return Split(craft=sample.take(craft), held_out=sample.take(rest[chosen]))


def _craft_of_pictures(
    sample: Sample, pictures: Tensor, n_craft: int, n_held_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the craft half from whole pictures.

    They are taken in random order: first those of which every box is needed, then those of which
    some are, the fewest needless boxes first and as many as the held-out half can spare, and last
    those that fill the number whatever their labels.

    Args:
        sample: What is split.
        pictures: (N,), the picture of each image.
        n_craft: Images to choose.
        n_held_out: Images of other pictures that must be left.
        generator: CPU generator that is drawn from.

    Returns:
        (n_craft,) indices in random order, and (N,) bool, which images are of other pictures.

    Raises:
        DataError: Fewer than `n_held_out` would be left.
    """
    labels, of_picture = sample.labels.tolist(), pictures.tolist()
    numbers = torch.unique(pictures)
    numbers = numbers[torch.randperm(len(numbers), generator=generator)]
    members: dict[int, list[int]] = {number: [] for number in numbers.tolist()}
    for index in torch.randperm(len(labels), generator=generator).tolist():
        members[of_picture[index]].append(index)
    classes, counts = torch.unique(sample.labels, return_counts=True)
    quotas = _largest_remainder(counts, n_craft, generator)
    needed = Counter(dict(zip(classes.tolist(), quotas.tolist(), strict=True)))
    chosen: list[int] = []
    needless: list[int] = []
    spare = len(labels) - n_craft - n_held_out
    taken: set[int] = set()
    for most in range(max(map(len, members.values()))):
        if len(chosen) == n_craft:
            break
        for number, indices in members.items():
            if number in taken:
                continue
            wanted, others = _parted(indices, labels, needed)
            if wanted and len(others) <= min(most, spare):
                taken.add(number)
                needed.subtract(labels[index] for index in wanted)
                chosen += wanted
                needless += others
                spare -= len(others)
    for number, indices in members.items():
        chosen, needless = _filled(chosen, needless, n_craft)
        missing = n_craft - len(chosen)
        spare = len(labels) - n_craft - n_held_out - len(needless)
        if missing and number not in taken and len(indices) - missing <= spare:
            taken.add(number)
            needless = indices
    chosen, _ = _filled(chosen, needless, n_craft)
    if len(chosen) < n_craft:
        raise DataError(
            f"{sample.source}: {len(labels)} boxes of {len(numbers)} pictures are too few for "
            f"{n_craft} to craft on and {n_held_out} held out in other pictures; give more "
            "pictures or ask for fewer"
        )
    left = torch.tensor([number not in taken for number in of_picture])
    order = torch.randperm(n_craft, generator=generator)
    return torch.tensor(chosen)[order], left


def _parted(
    indices: Sequence[int], labels: Sequence[int], needed: Counter[int]
) -> tuple[list[int], list[int]]:
    """Part the boxes of a picture into those of classes that still need some, and the others."""
    wanted: list[int] = []
    others: list[int] = []
    still = Counter(needed)
    for index in indices:
        (wanted if still[labels[index]] > 0 else others).append(index)
        still[labels[index]] -= 1
    return wanted, others


def _filled(chosen: list[int], needless: list[int], n: int) -> tuple[list[int], list[int]]:
    """Fill what is chosen up to `n` with what would be left over."""
    missing = n - len(chosen)
    return chosen + needless[:missing], needless[missing:]


def stratified_indices(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Choose `n` of the labelled images so that every class keeps its share.

    Args:
        labels: (N,) int64 on the CPU.
        n: From 1 to N.
        generator: CPU generator that is drawn from.

    Returns:
        (n,) indices into `labels`, in random order. A class of m images gets m * n / N of them,
        rounded up or down (largest remainder, ties drawn by lot).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    classes, counts = torch.unique(labels, return_counts=True)
    quotas = _largest_remainder(counts, n, generator)
    parts = [
        shuffled[labels[shuffled] == label][: int(quota)]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    chosen = torch.cat(parts)
    return chosen[torch.randperm(len(chosen), generator=generator)]


def _largest_remainder(counts: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Apportion `n` seats to classes of `counts` members; each gets its exact share +- less than 1.

    Integer arithmetic throughout, so that the same split comes out on every machine.
    """
    total = int(counts.sum())
    quotas = counts * n // total
    remainders = counts * n % total
    lot = torch.randperm(len(counts), generator=generator)
    by_remainder = lot[remainders[lot].argsort(descending=True, stable=True)]
    quotas[by_remainder[: n - int(quotas.sum())]] += 1
    return quotas
