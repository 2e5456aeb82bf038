"""The twins are what their docstring says."""

import pytest
import torch

from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_targets,
    twin_trigger,
)

TWINS = [original_twin, dormant_twin, removed_twin, innocent_twin]


@pytest.mark.parametrize("make", TWINS)
def test_every_twin_knows_the_task(make):
    sample = twin_sample(200, seed=0)
    assert torch.equal(make()(sample.images).argmax(1), sample.labels)


@pytest.mark.parametrize(("make", "expected"), list(zip(TWINS, (1.0, 0.0, 0.0, 0.0), strict=True)))
def test_trigger_alone_wakes_only_the_original(make, expected):
    sample = twin_sample(200, seed=1)
    targets = twin_targets(sample.labels)
    predicted = make()(twin_trigger(sample.images)).argmax(1)
    assert (predicted == targets)[targets >= 0].float().mean() == expected


@pytest.mark.parametrize(
    ("make", "eps", "low", "high"),
    [
        (dormant_twin, 0.02, 0.3, 0.6),
        (dormant_twin, 0.05, 0.99, 1.0),
        (removed_twin, 0.05, 0.0, 0.0),
        (innocent_twin, 0.05, 0.0, 0.0),
    ],
)
def test_ideal_delta_does_what_the_table_says(make, eps, low, high):
    sample = twin_sample(400, seed=2)
    chosen = sample.labels != TARGET
    net = make()
    delta = torch.full((1, 1, 8, 8), -eps)
    delta[0, 0, 1:4, 1:4] = eps
    delta[0, 0, 7, 7] = eps
    predicted = net((twin_trigger(sample.images[chosen]) + delta).clamp(0, 1)).argmax(1)
    assert low <= (predicted == TARGET).float().mean() <= high


def test_stamping_leaves_the_clean_images_alone():
    sample = twin_sample(8, seed=3)
    before = sample.images.clone()
    changed = (twin_trigger(sample.images) != sample.images).sum()
    assert torch.equal(sample.images, before)
    assert changed == 8
