"""Whatever the bytes, opening ends in tensors or in a ModelError."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bdaudit.errors import ModelError
from bdaudit.models import inspect_checkpoint, open_checkpoint
from bdaudit.models.settings import ModelSettings

STATE = {"conv1.weight": torch.randn(2, 3, 3, 3), "fc.bias": torch.randn(4), "n": torch.tensor(3)}


def torch_bytes(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": STATE, "lr": 0.1}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


VALID = {
    "safetensors": save(STATE, {"arch": "x"}),
    "zip": torch_bytes(zipped=True),
    "legacy": torch_bytes(zipped=False),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "m.pt"


def opens_or_explains(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        tensors = open_checkpoint(path).tensors
    except ModelError:
        pass
    else:
        assert tensors
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    inspect_checkpoint(path)


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04"]))
def test_random_bytes(path: Path, content: bytes, magic: bytes) -> None:
    opens_or_explains(path, magic + content)


@FUZZ
@given(st.sampled_from(sorted(VALID)), st.data())
def test_damaged_files(path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] = data.draw(st.integers(0, 255))
        else:
            length = data.draw(st.integers(1, 40))
            del content[position : position + length]
            content = content or bytearray(b"x")
    opens_or_explains(path, bytes(content))


@FUZZ
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "state_dict", "ema", "model_name", "x", "module.x"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_object_tree(path: Path, tree: object) -> None:
    opens_or_explains(path, pickle.dumps(tree, 2))
    stream = io.BytesIO()
    torch.save({"model": tree, "state_dict": {"w": torch.ones(1), "x": tree}}, stream)
    opens_or_explains(path, stream.getvalue())


def test_a_tree_that_contains_itself(path: Path) -> None:
    loop: dict[str, object] = {}
    loop["model"] = loop
    opens_or_explains(path, pickle.dumps(loop, 2))


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["arch", "num_classes", "image_shape", "mean", "std", "outputs", "other"]),
        st.text(st.characters(codec="ascii"), max_size=12) | st.from_regex(r"-?\d{1,9}(,\d+)*"),
    )
)
def test_any_metadata(metadata: dict[str, str]) -> None:
    try:
        read = ModelSettings.from_metadata(metadata, Path("m.safetensors"))
    except ModelError:
        pass
    else:
        assert ModelSettings.from_metadata(read.to_metadata(), Path("again")) == read


def test_metadata_survives_its_own_spelling() -> None:
    given_settings = ModelSettings(
        arch="bdaudit/preactresnet18",
        num_classes=10,
        image_shape=(1, 28, 28),
        input_size=(32, 32),
        mean=(0.1, 1e-7),
        std=(1.0, 2.5),
        outputs="probabilities",
    )
    metadata = given_settings.to_metadata()
    assert ModelSettings.from_metadata(metadata, Path("m")) == given_settings
