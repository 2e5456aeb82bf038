"""Bounds on outputs: they bound, they go with copies and files, and a file that lies is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.models import build_network, inspect_checkpoint, load_model, save_model
from bdaudit.models.clamps import clamp_output, remove_clamps
from bdaudit.models.fresh import fresh_classifier

ARCH = "bdaudit/preactresnet18_w4"


@pytest.fixture
def bounded(tmp_path: Path) -> Path:
    """A file of a network with two bounded layers."""
    network = build_network(ARCH, num_classes=3, generator=torch.Generator().manual_seed(0))
    clamp_output(network.layer1[0].bn1, torch.tensor([0.1, 0.2, 0.3, 0.4]))  # type: ignore
    clamp_output(network.linear, 0.05)  # type: ignore[arg-type]
    path = tmp_path / "bounded.safetensors"
    save_model(path, network, arch=ARCH, num_classes=3, image_shape=(3, 16, 16))
    return path


def _again(path: Path, **changes: torch.Tensor) -> Path:
    tensors = load_file(path)
    for name, value in changes.items():
        tensors.pop(name, None)
        tensors[name] = value
    save_file(tensors, path)  # without metadata: by the tensors alone
    return path


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv2d(1, 2, 1), (3, 1, 4, 4), 1),
        (nn.BatchNorm1d(2), (3, 2), 1),
        (nn.Linear(5, 2), (3, 4, 5), -1),
    ],
)
def test_each_channel_is_brought_down_to_its_bound_and_none_is_raised(
    layer: nn.Module, shape: tuple[int, ...], channels: int
) -> None:
    images = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = layer.eval()(images)
    bounds = torch.tensor([0.5, -0.25])
    clamp_output(layer, bounds)  # type: ignore[arg-type]
    for network in (layer, copy.deepcopy(layer)):
        after = network(images)
        for channel in (0, 1):
            was, now = before.select(channels, channel), after.select(channels, channel)
            assert torch.equal(now, was.clamp(max=float(bounds[channel])))
    remove_clamps(layer)
    assert torch.equal(layer(images), before)
    assert not layer._forward_hooks
    assert "clamp.at_most" not in layer.state_dict()


def test_a_file_is_recognised_with_its_bounds(bounded: Path) -> None:
    first = load_model(bounded, name="m")
    images = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    assert float(first.classifier(images).max()) <= 0.05
    _again(bounded)
    second = load_model(bounded, name="m", image_shape=(3, 16, 16))
    assert torch.equal(first.classifier(images), second.classifier(images))
    assert first.weights_sha256 == second.weights_sha256
    found = inspect_checkpoint(bounded)
    assert found.guesses[0].arch == ARCH
    assert found.guesses[0].score == 1.0
    assert "outputs of 2 layers are bounded from above ('layer1.0.bn1', 'linear')" in found.notes


def test_other_bounds_are_another_model(bounded: Path) -> None:
    first = load_model(bounded, name="m").weights_sha256
    _again(bounded, **{"linear.clamp.at_most": torch.tensor([0.05, 0.05, 0.06])})
    assert load_model(bounded, name="m", image_shape=(3, 16, 16)).weights_sha256 != first


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layer9.clamp.at_most", torch.zeros(4), "'layer9'.*no such layer"),
        ("layer1.clamp.at_most", torch.zeros(4), "'layer1'.*a Sequential"),
        ("linear.clamp.at_most", torch.zeros(4), r"expected 3 bounds.*\(4,\)"),
        ("linear.clamp.at_most", torch.zeros(3, dtype=torch.int64), "expected 3 bounds.*int64"),
        ("linear.clamp.at_most", torch.full((3,), float("nan")), "finite"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(
    bounded: Path, name: str, value: torch.Tensor, said: str
) -> None:
    _again(bounded, **{name: value})
    with pytest.raises(ModelError, match=said):
        load_model(bounded, name="m", image_shape=(3, 16, 16))


def test_fresh_weights_come_without_bounds(bounded: Path) -> None:
    model = load_model(bounded, name="m")
    fresh = fresh_classifier(model, generator=torch.Generator().manual_seed(0))
    assert not any("clamp" in name for name in fresh.state_dict())
    assert any("clamp" in name for name in model.classifier.state_dict())
