"""Inspection describes any file and refuses none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from bdaudit.errors import ModelError
from bdaudit.foundation.digests import digest_file, digest_tensors
from bdaudit.models import inspect_checkpoint, save_model
from tests.models.checkpoints import ARCH, IMAGE_SHAPE, RunsACommand, tiny_network


def test_a_good_file(tmp_path: Path) -> None:
    network = tiny_network()
    path = tmp_path / "m.safetensors"
    save_model(path, network, arch=ARCH, num_classes=4, image_shape=IMAGE_SHAPE)
    found = inspect_checkpoint(path)
    assert found.is_safe
    assert found.container == "safetensors"
    assert found.n_tensors == len(network.state_dict())
    # Parameters and the running statistics of batch norm; its counters are integers.
    floats = [t for t in network.state_dict().values() if t.is_floating_point()]
    assert found.n_parameters == sum(t.numel() for t in floats)
    assert found.dtypes == {"float32": len(floats), "int64": found.n_tensors - len(floats)}
    assert found.metadata["arch"] == ARCH
    assert found.weights_sha256 == digest_tensors(dict(network.state_dict()))
    assert (found.file_sha256, found.size_bytes) == (digest_file(path), path.stat().st_size)
    (guess,) = found.guesses
    assert (guess.arch, guess.score, guess.num_classes, guess.in_channels) == (ARCH, 1.0, 4, 3)
    assert json.loads(json.dumps(found.to_dict()))["guesses"][0]["arch"] == ARCH


def test_a_wrapped_network_is_guessed_too(tmp_path: Path) -> None:
    state = {f"1.{name}": tensor for name, tensor in tiny_network().state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    assert inspect_checkpoint(tmp_path / "m.pt").guesses[0].arch == ARCH


def test_a_malicious_file_is_described_and_never_run(tmp_path: Path) -> None:
    witness, path = tmp_path / "ran", tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(RunsACommand(witness)))
    found = inspect_checkpoint(path)
    assert not found.is_safe
    assert found.wanted_globals in (("posix.system",), ("nt.system",))
    assert found.problem is not None
    assert "refused" in found.problem
    assert not witness.exists()
    json.dumps(found.to_dict())


def test_code_named_in_metadata_is_a_problem(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors", {"arch": "net.py:make"})
    found = inspect_checkpoint(tmp_path / "m.safetensors")
    assert not found.is_safe
    assert "Python code" in str(found.problem)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([float("nan")]), "b": torch.ones(1)}, tmp_path / "m.pt")
    found = inspect_checkpoint(tmp_path / "m.pt")
    assert found.non_finite == ("a",)
    assert "NaN" in str(found.problem)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04", b"\x80\x02", b"\x80\x02]."])
def test_damaged_files_are_described(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    found = inspect_checkpoint(tmp_path / "m.pt")
    assert found.problem
    assert found.size_bytes == len(content)
    assert found.wanted_globals == ()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        inspect_checkpoint(tmp_path / "m.pt")
