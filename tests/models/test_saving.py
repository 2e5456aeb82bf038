"""What save_model writes, and that it writes whole files or none."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import open_checkpoint, save_model
from tests.models.checkpoints import ARCH, IMAGE_SHAPE, same_tensors, tiny_network

SETTINGS: dict[str, Any] = {"arch": ARCH, "num_classes": 4, "image_shape": IMAGE_SHAPE}


def test_tensors_and_metadata_come_back_exactly(tmp_path: Path) -> None:
    network = tiny_network()
    save_model(
        tmp_path / "m.safetensors",
        network,
        **SETTINGS,
        mean=(0.1, 1 / 3, 0.3),
        std=(0.2,) * 3,
        extra={"seed": "7"},
    )
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert same_tensors(checkpoint.tensors, dict(network.state_dict()))
    assert checkpoint.metadata == {
        "format": "pt",
        "arch": ARCH,
        "num_classes": "4",
        "image_shape": "3,8,8",
        "mean": "0.1,0.3333333333333333,0.3",
        "std": "0.2,0.2,0.2",
        "seed": "7",
    }


def test_tied_weights_are_written(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    save_model(tmp_path / "m.safetensors", network, **{**SETTINGS, "arch": None})
    assert open_checkpoint(tmp_path / "m.safetensors").tensors.keys() == {"0.weight", "1.weight"}


def test_nothing_is_left_behind_and_others_may_read_it(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == stat.S_IMODE(
        plain.stat().st_mode
    )


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    target.mkdir()  # cannot be replaced by a file
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(target, tiny_network(), **SETTINGS)
    with pytest.raises(ModelError, match="cannot be written"):
        save_model(tmp_path / "absent" / "m.safetensors", tiny_network(), **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert target.is_dir()


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "net.py:make"},
        {"num_classes": 1},
        {"extra": {"arch": "x"}},
        {"mean": (0.1,), "std": (0.1, 0.2)},
    ],
)
def test_settings_that_would_not_load_are_not_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        save_model(tmp_path / "m.safetensors", tiny_network(), **{**SETTINGS, **changes})
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = tiny_network().train()
    save_model(tmp_path / "m.safetensors", network, **SETTINGS)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert isinstance(network.get_parameter("conv1.weight"), torch.nn.Parameter)
