"""Files that can be read with a note, and files that are something else."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.models import check_outputs, load_model, open_checkpoint, wrap_module
from bdaudit.models.fresh import fresh_classifier
from tests.models.checkpoints import ARCH, IMAGE_SHAPE, same_tensors, tiny_network

STATE = dict(tiny_network().state_dict())


def shards(folder: Path, **changes: Any) -> Path:
    """Write the network in two shards with their index, which `changes` replaces parts of."""
    names = list(STATE)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: STATE[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | changes}))
    return index


def test_shards_are_merged_and_all_files_are_known(tmp_path: Path) -> None:
    index = shards(tmp_path)
    assert same_tensors(open_checkpoint(index).tensors, STATE)
    model = load_model(index, name="m", image_shape=IMAGE_SHAPE)
    assert {file.path for file in model.files} == set(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file", ["../out.safetensors", "/etc/passwd", "sub/x.safetensors", "", "..", "a\\b", "x\0y", 5]
)
def test_shards_lie_in_the_folder_of_the_index(tmp_path: Path, file: Any) -> None:
    with pytest.raises(ModelError, match="in the folder of the index"):
        open_checkpoint(shards(tmp_path, other=file))


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    index = shards(tmp_path / "here")
    shard = tmp_path / "here" / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="leads out of"):
        open_checkpoint(index)


def test_shards_hold_what_the_index_says(tmp_path: Path) -> None:
    index = shards(tmp_path)
    extra = {**dict(list(STATE.items())[::2]), "more": torch.ones(1)}
    save_file(extra, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"they differ in 'more'"):
        open_checkpoint(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"No such file|they differ"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "5",
        "{",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        "[" * 99999,
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(ModelError, match="expected an index of shards"):
        open_checkpoint(tmp_path / "m.index.json")


# --- one output, averaged, quantised


@pytest.mark.parametrize("given", [None, 2])
def test_one_output_becomes_two_classes(tmp_path: Path, given: int | None) -> None:
    network = tiny_network(num_classes=1).eval()
    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE, num_classes=given)
    images = torch.rand(16, *IMAGE_SHAPE)
    with torch.no_grad():
        logits, score = model.classifier(images), network(images)[:, 0]
    assert model.num_classes == 2
    torch.testing.assert_close(logits.softmax(1)[:, 1], score.sigmoid())
    assert torch.equal(logits.argmax(1) == 1, score > 0)
    assert any("one score" in note for note in model.notes)
    fresh = fresh_classifier(model, generator=torch.Generator().manual_seed(0))
    assert fresh(images).shape == (16, 2)


class OneProbability(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.linear(images.flatten(1)))


@pytest.mark.parametrize("declared", [None, "probabilities"])
def test_one_probability_is_taken_as_two(declared: Any) -> None:
    torch.manual_seed(0)
    network = OneProbability().eval()
    images = torch.rand(32, *IMAGE_SHAPE)
    model = wrap_module(network, name="m", image_shape=IMAGE_SHAPE, outputs=declared)
    model = check_outputs(model, images, outputs=declared)
    with torch.no_grad():
        answers, share = model.classifier(images).exp(), network(images)[:, 0]
    torch.testing.assert_close(answers[:, 1], share)
    torch.testing.assert_close(answers.sum(1), torch.ones(32))


def test_the_counter_of_weight_averaging_is_left_out(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(tiny_network())
    torch.save(averaged.state_dict(), tmp_path / "m.pt")
    assert "n_averaged" in averaged.state_dict()
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert same_tensors(checkpoint.tensors, STATE)
    assert any("'n_averaged'" in note for note in checkpoint.notes)


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates making these, not that they exist
        return torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8)


def test_tensors_that_torch_quantised_become_floats(tmp_path: Path) -> None:
    state = {
        **STATE,
        "conv1.weight": quantised(STATE["conv1.weight"]),
        "conv1.scale": torch.tensor(0.1),
        "conv1.zero_point": torch.tensor(3),
    }
    del state["linear.weight"], state["linear.bias"]
    state["linear._packed_params._packed_params"] = (  # type: ignore[assignment]
        quantised(STATE["linear.weight"]),
        STATE["linear.bias"],
    )
    torch.save(state, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)
    loaded = model.network.state_dict()
    for name in ("conv1.weight", "linear.weight"):
        assert torch.equal(loaded[name], quantised(STATE[name]).dequantize())
    assert torch.equal(loaded["linear.bias"], STATE["linear.bias"])
    assert any("2 quantised tensors" in note for note in model.notes)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_where_weights_belong_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({**STATE, "conv1.weight": STATE["conv1.weight"].to(dtype)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"expected floating-point weights, got \w+ in 'conv1"):
        load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)


def test_a_counter_that_became_a_float_is_a_counter_again(tmp_path: Path) -> None:
    name = next(n for n in STATE if n.endswith("num_batches_tracked"))
    torch.save({**STATE, name: torch.tensor(7.0)}, tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)
    assert model.network.state_dict()[name].dtype == torch.int64
    torch.save({**STATE, name: torch.tensor(7.5)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="expected whole numbers"):
        load_model(tmp_path / "m.pt", name="m", image_shape=IMAGE_SHAPE)


@pytest.mark.parametrize("shape", [(0, 16), (0,), (4, 0)])
def test_a_head_without_numbers_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = {**STATE, "linear.weight": torch.zeros(shape), "linear.bias": torch.zeros(shape[0])}
    torch.save(state, tmp_path / "m.pt")
    for arch in (None, ARCH):
        with pytest.raises(ModelError):
            load_model(tmp_path / "m.pt", name="m", arch=arch, image_shape=IMAGE_SHAPE)


# --- safetensors


def described(entries: dict[str, tuple[str, list[int], list[int]]], data: bytes) -> bytes:
    header = json.dumps(
        {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entries.items()}
    ).encode()
    return struct.pack("<Q", len(header)) + header + data


RANGES = {
    "apart": ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [8, 16])}, 16, True),
    "overlapping": ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])}, 12, False),
    "on the same bytes": ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [0, 8])}, 8, False),
    "with a gap": ({"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [12, 20])}, 20, False),
    "with a gap at the beginning": ({"a": ("F32", [2], [4, 12])}, 12, False),
    "with bytes after the end": ({"a": ("F32", [2], [0, 8])}, 12, False),
    "behind the end": ({"a": ("F32", [2], [0, 8])}, 4, False),
    "of another length than the shape": ({"a": ("F32", [3], [0, 8])}, 8, False),
    "backward": ({"a": ("F32", [2], [8, 0])}, 8, False),
    "of 4 bits": ({"w.weight": ("F4", [4, 4], [0, 8])}, 8, False),
}


@pytest.mark.parametrize("kind", RANGES)
def test_ranges_of_safetensors(tmp_path: Path, kind: str) -> None:
    entries, length, readable = RANGES[kind]
    path = tmp_path / "m.safetensors"
    path.write_bytes(described(entries, bytes(range(length))))
    if not readable:
        with pytest.raises(ModelError):
            open_checkpoint(path)
        return
    tensors = open_checkpoint(path).tensors
    for name, (_, shape, (start, stop)) in entries.items():  # read once more, by hand
        again = torch.frombuffer(bytearray(bytes(range(length))[start:stop]), dtype=torch.float32)
        assert torch.equal(tensors[name], again.reshape(shape))


@pytest.mark.parametrize("first", [b"{", b"MZ", b"BZ", b"\x1f\x8b", b"\xff\xd8"])
def test_a_length_that_looks_like_another_format_is_a_length(tmp_path: Path, first: bytes) -> None:
    length = int.from_bytes(first, "little") if len(first) > 1 else 0x147B
    header = b'{"a.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + b"\0\0\x80?")
    assert path.read_bytes().startswith(first)
    assert open_checkpoint(path).tensors["a.weight"].item() == 1.0


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    one = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    other = '"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{one}, {other}}}".encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\x80?")
    with pytest.raises(ModelError, match="'a' twice"):
        open_checkpoint(path)


def test_a_sparse_file_of_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as stream:
        stream.truncate(30 << 30)
    with pytest.raises(ModelError, match="expected a checkpoint, got zeros"):
        open_checkpoint(path)


# --- something else


def packed(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "npz":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY")
    elif kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("weights.pt"))
    return stream.getvalue()


FOREIGN = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "page": (b"\xef\xbb\xbf \n<!DOCTYPE html><html>Sign in", "web page"),
    "error page": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "gzip": (gzip.compress(b"x"), "gzip archive; unpack"),
    "tar": (packed("tar"), "tar archive"),
    "npz": (packed("npz"), r"numpy's \.npz"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "7z archive"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(30), "HDF5"),
    "gguf": (b"GGUF" + bytes(30), "GGUF"),
    "json": (b'{"model": 1}', "JSON"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(30), "PNG"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_checkpoint_is_named_with_what_to_do(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    content, said = FOREIGN[kind]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    if kind == "npz" and suffix == ".safetensors":
        said = "damaged or different"
    with pytest.raises(ModelError, match=said):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"junk", b"\x80\x02junk", b"\x80\x04\x95", b"PK\x03\x04", bytes(99)]
)
def test_no_librarys_unsafe_advice_is_passed_on(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    path.write_bytes(save({"a": torch.ones(1)}))
    assert open_checkpoint(path).container == "safetensors"
