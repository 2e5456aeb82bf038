"""What is compared of a detector is its backbone, whose layers run once a pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bdaudit.detection import mark
from bdaudit.detection.asked import Asked
from bdaudit.detection.small import SMALL_DETECTORS, small_detector
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.existence.layers import select_layers
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier


def images(n: int) -> Tensor:
    pictures = torch.rand(n, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return mark(pictures, torch.tensor([[8.0, 8, 32, 32]]).repeat(n, 1))


@pytest.mark.parametrize("kind", SMALL_DETECTORS)
def test_its_layers_run_once_a_pass(kind: str) -> None:
    network = small_detector(kind, 4, 3).eval()
    names = select_layers(network)
    assert names[0] == "backbone.stages.0.conv1"
    assert names[-1] == "backbone.fpn.layer_blocks.2.0"
    runs: list[str] = []
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.append(name))
    with torch.no_grad():
        network(images(2))
    assert sorted(runs) == sorted(names)
    head = "roi_heads.box_head.fc6" if kind == "fasterrcnn" else "head.*"
    assert all(name.startswith(head.rstrip("*")) for name in select_layers(network, include=[head]))


def test_the_coefficient_tells_a_copy_from_another_detector() -> None:
    original, innocent = (detector(seed) for seed in (0, 5))
    clean = images(24)
    triggered = clean.clone()
    triggered[:, :3, 14:20, 14:20] = 1.0
    values = []
    for defended in (original, innocent):
        (record,) = finish(
            existence_coefficient(
                original,
                copy.deepcopy(defended),
                [("reference", innocent)],
                clean=clean,
                triggered=triggered,
                config=ExistenceConfig(n_bootstrap=0),
                generator=torch.Generator().manual_seed(0),
            )
        )
        values.append(record.value)
    assert values == pytest.approx([1, 0], abs=1e-4)


def detector(seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = small_detector("fcos", 4, 3)
    assert isinstance(network, Asked)
    return Classifier(network).eval().requires_grad_(False)
