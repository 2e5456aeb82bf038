"""Every format that is opened, and every one that must be refused with an explanation."""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from bdaudit.errors import ModelError
from bdaudit.models import open_checkpoint
from tests.models.checkpoints import RunsACommand, same_tensors, tiny_network

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


def save(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)  # type: ignore[arg-type]
    return path


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors", {"arch": "x"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert same_tensors(checkpoint.tensors, STATE)
    assert (checkpoint.container, checkpoint.metadata) == ("safetensors", {"arch": "x"})


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_in_both_forms_of_torch(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "m.pth", STATE, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert same_tensors(checkpoint.tensors, STATE)
    assert checkpoint.container == "torch state_dict"


def test_formats_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.pt")
    assert open_checkpoint(tmp_path / "m.pt").container == "safetensors"


@pytest.mark.parametrize(
    "keys", [("state_dict",), ("model",), ("net",), ("ema",), ("state", "model_state_dict")]
)
def test_nested_state_dicts(tmp_path: Path, keys: tuple[str, ...]) -> None:
    content: dict[str, object] = dict(STATE)
    for key in reversed(keys):
        content = {"epoch": 3, "best": torch.tensor(0.9), key: content}
    checkpoint = open_checkpoint(save(tmp_path / "m.pt", content))
    assert same_tensors(checkpoint.tensors, STATE)
    assert all(repr(key) in checkpoint.container for key in keys)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_wrapper_prefixes_are_stripped_and_noted(tmp_path: Path, prefix: str) -> None:
    path = save(tmp_path / "m.pt", {prefix + name: tensor for name, tensor in STATE.items()})
    checkpoint = open_checkpoint(path)
    assert same_tensors(checkpoint.tensors, STATE)
    assert any("stripped" in note for note in checkpoint.notes)


def test_a_name_in_module_dot_that_not_all_share_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert same_tensors(open_checkpoint(save(tmp_path / "m.pt", state)).tensors, state)


def test_pruning_masks_are_multiplied_as_torch_does(tmp_path: Path) -> None:
    layer = nn.Linear(6, 4)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    path = save(tmp_path / "m.pt", layer.state_dict())
    assert "weight_mask" in layer.state_dict()
    checkpoint = open_checkpoint(path)
    prune.remove(layer, "weight")  # the oracle: torch's own merge
    assert same_tensors(checkpoint.tensors, dict(layer.state_dict()))
    assert int((checkpoint.tensors["weight"] == 0).sum()) == 12
    assert any("mask" in note for note in checkpoint.notes)


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    state = {"a.weight_orig": torch.ones(2, 2), "a.weight_mask": torch.ones(3)}
    with pytest.raises(ModelError, match=r"weight_mask.*\(3,\)"):
        open_checkpoint(save(tmp_path / "m.pt", state))


@pytest.mark.parametrize("package", ["numpy._core", "numpy.core"])
def test_numpy_content_beside_the_weights(tmp_path: Path, package: str) -> None:
    content = {
        "state_dict": STATE,
        "accuracy": np.float64(0.9),
        "index": np.arange(3),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
    }
    path = save(tmp_path / "m.pt", content, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert b"numpy._core.multiarray" in raw or b"numpy.core.multiarray" in raw
    raw = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(raw.replace(b"numpy.core.multiarray", f"{package}.multiarray".encode()))
    assert same_tensors(open_checkpoint(path).tensors, STATE)


def test_half_precision_and_buffers_keep_their_types(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    tensors = open_checkpoint(save(tmp_path / "m.pt", state)).tensors
    assert (tensors["w"].dtype, tensors["n"].dtype) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_malicious_pickle_is_named_and_never_run(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps({"state_dict": RunsACommand(witness)}, protocol))
    with pytest.raises(ModelError, match=r"refused.*(posix|nt)\.system.*nothing was run"):
        open_checkpoint(path)
    assert not witness.exists()
    with warnings.catch_warnings():  # the same file does run when it is unpickled carelessly
        warnings.simplefilter("ignore")
        pickle.loads(path.read_bytes())
    assert witness.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_is_named_and_never_run(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "ran"
    content = {"state_dict": STATE, "extra": RunsACommand(witness)}
    path = save(tmp_path / "m.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"(posix|nt)\.system"):
        open_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_says_how_to_resave(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "m.pt", nn.Linear(2, 2), _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"whole pickled module.*state_dict\(\)"):
        open_checkpoint(path)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates making these, not that they exist
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "m.pt")
    with pytest.raises(ModelError, match="TorchScript"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("entry", ["m/archive_format", "serialized_exported_program.json"])
def test_export_archives_are_refused(tmp_path: Path, entry: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr(entry, "pt2")
    with pytest.raises(ModelError, match=r"torch\.export"):
        open_checkpoint(tmp_path / "m.pt2")


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("folder/readme", "hello")
    with pytest.raises(ModelError, match=r"without 'data\.pkl'"):
        open_checkpoint(tmp_path / "m.zip")


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    source, bomb = save(tmp_path / "m.pt", {"w": torch.zeros(1_000_000)}), tmp_path / "bomb.pt"
    with zipfile.ZipFile(source) as plain, zipfile.ZipFile(bomb, "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ModelError, match="unpack to"):
        open_checkpoint(bomb)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**40)
    with pytest.raises(ModelError, match="tensors that fit in the file"):
        open_checkpoint(save(tmp_path / "m.pt", {"w": huge}))


def test_tied_weights_are_no_such_claim(tmp_path: Path) -> None:
    shared = torch.randn(600_000)
    state = {"encoder.weight": shared, "decoder.weight": shared}
    assert len(open_checkpoint(save(tmp_path / "m.pt", state)).tensors) == 2


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64)]
)
def test_tensors_no_network_runs_with_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="dense real tensors, got 'w'"):
        open_checkpoint(save(tmp_path / "m.pt", {"w": tensor}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_non_finite_weights_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    state = {"good": torch.ones(3), "bad.weight": torch.tensor([1.0, value]).to(dtype)}
    with pytest.raises(ModelError, match=r"NaN or infinity in 'bad\.weight';"):
        open_checkpoint(save(tmp_path / "m.pt", state))


def test_finite_weights_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    state = {"w": torch.full((4,), 3e38)}
    assert same_tensors(open_checkpoint(save(tmp_path / "m.pt", state)).tensors, state)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, "got keys 'epoch', 'lr'"),
        ({}, "named tensors"),
        ([torch.ones(2)], "got a list"),
        (torch.ones(2, 3), r"a single tensor of shape \(2, 3\)"),
        ({"model": {"a": "b"}}, "got keys 'model'"),
    ],
)
def test_files_without_named_tensors(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        open_checkpoint(save(tmp_path / "m.pt", content))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_missing_empty_junk_and_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ModelError, match="No such file"):
        open_checkpoint(tmp_path / f"missing{suffix}")
    empty, junk = tmp_path / f"empty{suffix}", tmp_path / f"junk{suffix}"
    empty.touch()
    with pytest.raises(ModelError, match="empty file"):
        open_checkpoint(empty)
    junk.write_bytes(b"no such checkpoint")
    with pytest.raises(ModelError, match="damaged or different"):
        open_checkpoint(junk)
    with pytest.raises(ModelError, match="got a folder"):
        open_checkpoint(tmp_path)


def test_onnx_is_pointed_to_the_query_mode(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(ModelError, match="query mode"):
        open_checkpoint(tmp_path / "m.onnx")


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, kept: float) -> None:
    state = dict(tiny_network().state_dict())
    save_file(state, tmp_path / "m.safetensors")
    save(tmp_path / "m.pt", state)
    save(tmp_path / "legacy.pt", state, _use_new_zipfile_serialization=False)
    for name in ("m.safetensors", "m.pt", "legacy.pt"):
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(ModelError, match=r"truncated|damaged"):
            open_checkpoint(path)


def test_a_hostile_name_reaches_the_message_escaped(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(save(tmp_path / "m.pt", {"\x1b[2Jboo": torch.tensor([float("nan")])}))
    assert "\x1b" not in str(caught.value)
    assert "boo" in str(caught.value)


def test_opening_leaves_the_allow_list_of_torch_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())  # torch gives them in no fixed order
    open_checkpoint(save(tmp_path / "m.pt", STATE))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_pickle_that_misuses_an_allowed_name_is_refused(tmp_path: Path) -> None:
    """Feeds the stand-ins what numpy's own code would have to reject."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00Otq")
    stream.write(b"\x01RX\x04\x00\x00\x00evil" + b"tR.")
    path = tmp_path / "m.pt"
    path.write_bytes(stream.getvalue())
    with pytest.raises(ModelError):
        open_checkpoint(path)
