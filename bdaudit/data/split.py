"""Stratified choice: subsets of a sample, and its craft and held-out halves.

Perturbations are made on the craft half and every reported rate comes from the held-out half; the
two never share an image.
"""

from __future__ import annotations

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
        DataError: The sample has too few images.
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
    craft = stratified_indices(sample.labels, n_craft, generator)
    left = torch.ones(len(sample), dtype=torch.bool)
    left[craft] = False
    rest = left.nonzero()[:, 0]
    chosen = stratified_indices(sample.labels[rest], n_held_out or len(rest), generator)
    return Split(craft=sample.take(craft), held_out=sample.take(rest[chosen]))


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
