"""Stratified choice and the craft/held-out split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdaudit.data import Sample, from_arrays, split_sample, stratified_indices
from bdaudit.detection import Places
from bdaudit.errors import ConfigError, DataError


def sample_of(labels: list[int]) -> Sample:
    images = torch.linspace(0, 1, len(labels)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return from_arrays(images, labels)


@st.composite
def labelled(draw: st.DrawFn) -> list[int]:
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=6))
    labels = [3 * k for k, count in enumerate(counts) for _ in range(count)]
    return draw(st.permutations(labels))


def assert_within_one(chosen: Tensor, labels: Tensor) -> None:
    counts, total = Counter(labels.tolist()), len(labels)
    taken = Counter(chosen.tolist())
    for label, count in counts.items():
        assert abs(taken[label] - count * len(chosen) / total) < 1


@settings(deadline=None)
@given(labelled(), st.data())
def test_any_subset_is_stratified_within_one_image(labels: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(labels)))
    tensor = torch.tensor(labels)
    chosen = stratified_indices(tensor, n, torch.Generator().manual_seed(n))
    assert len(set(chosen.tolist())) == n
    assert_within_one(tensor[chosen], tensor)


@settings(deadline=None)
@given(labelled(), st.integers(0, 2**31), st.data())
def test_split_is_disjoint_stratified_and_repeatable(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    sample = sample_of(labels)
    n_craft = data.draw(st.integers(1, len(labels) - 1))
    n_held_out = data.draw(st.none() | st.integers(1, len(labels) - n_craft))
    split = split_sample(sample, n_craft=n_craft, n_held_out=n_held_out, seed=seed)
    craft, held_out = set(split.craft.names), set(split.held_out.names)
    assert craft.isdisjoint(held_out)
    assert len(craft) == len(split.craft) == n_craft
    assert len(held_out) == len(split.held_out) == (n_held_out or len(labels) - n_craft)
    assert_within_one(split.craft.labels, sample.labels)
    left = [label for name, label in zip(sample.names, labels, strict=True) if name not in craft]
    assert_within_one(split.held_out.labels, torch.tensor(left))
    again = split_sample(sample, n_craft=n_craft, n_held_out=n_held_out, seed=seed)
    assert again.craft.names == split.craft.names
    assert again.held_out.names == split.held_out.names


def of_pictures(draw: st.DrawFn) -> Sample:
    """Boxes of pictures, mostly with an empty one each."""
    picture = st.lists(st.integers(0, 4), min_size=1, max_size=5)
    pictures = [[0, 1], *draw(st.lists(picture, min_size=1, max_size=30))]
    numbers = torch.tensor([k for k, labels in enumerate(pictures) for _ in labels])
    places = Places(numbers, torch.zeros(len(numbers), 4), ())
    return replace(sample_of([k for labels in pictures for k in labels]), places=places)


@settings(deadline=None)
@given(st.composite(of_pictures)(), st.integers(0, 2**31), st.data())
def test_no_picture_is_in_both_halves(sample: Sample, seed: int, data: st.DataObject) -> None:
    assert sample.places is not None
    n_craft = data.draw(st.integers(1, len(sample) - 1))
    n_held_out = data.draw(st.none() | st.integers(1, len(sample) - n_craft))
    _, sizes = torch.unique(sample.places.pictures, return_counts=True)
    try:
        split = split_sample(sample, n_craft=n_craft, n_held_out=n_held_out, seed=seed)
    except DataError:
        # Nearly all are asked for: whole pictures do not add up to the number of boxes.
        assert len(sample) - n_craft - (n_held_out or 1) < int(sizes.max())
        return
    assert len(split.craft) == n_craft
    assert n_held_out is None or len(split.held_out) == n_held_out
    parts = [half.places for half in (split.craft, split.held_out)]
    craft, held_out = (set(part.pictures.tolist()) for part in parts if part is not None)
    assert craft.isdisjoint(held_out)
    spare = len(sample) - n_craft - (n_held_out or 1)
    if spare >= int(sizes[list(craft)].sum() + sizes.max()):
        assert_within_one(split.craft.labels, sample.labels)
    again = split_sample(sample, n_craft=n_craft, n_held_out=n_held_out, seed=seed)
    assert again.craft.names == split.craft.names
    assert again.held_out.names == split.held_out.names


def test_images_labels_and_names_stay_together() -> None:
    sample = sample_of([i % 4 for i in range(40)])
    split = split_sample(sample, n_craft=17, seed=0)
    for part in (split.craft, split.held_out):
        for row, name in enumerate(part.names):
            assert torch.equal(part.images[row], sample.images[int(name)])
            assert part.labels[row] == int(name) % 4
        assert part.sha256 == sample.sha256


def test_a_class_sorted_sample_comes_out_mixed() -> None:
    split = split_sample(sample_of([0] * 100 + [1] * 100), n_craft=100, seed=0)
    assert 5 < int(split.craft.labels[:25].sum()) < 20


def test_another_seed_is_another_split() -> None:
    sample = sample_of([i % 4 for i in range(40)])
    one, two = (split_sample(sample, n_craft=20, seed=seed) for seed in (0, 1))
    assert set(one.craft.names) != set(two.craft.names)


def test_ties_do_not_favour_the_first_classes() -> None:
    labels = torch.arange(10)
    firsts = {
        int(stratified_indices(labels, 1, torch.Generator().manual_seed(seed)))
        for seed in range(40)
    }
    assert len(firsts) > 5


def test_too_few_images() -> None:
    sample = sample_of([0, 1, 0, 1])
    with pytest.raises(DataError, match="4 images are too few for 4"):
        split_sample(sample, n_craft=4, seed=0)
    with pytest.raises(DataError, match="too few for 2 to craft on and 3"):
        split_sample(sample, n_craft=2, n_held_out=3, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        split_sample(sample, n_craft=0, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        split_sample(sample, n_craft=1, n_held_out=0, seed=0)
