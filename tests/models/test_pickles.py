"""The inert stand-ins against numpy's own unpickling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bdaudit.models import pickles
from bdaudit.models.pickles import InertArray, InertObject


def read_pickle(path: Path) -> object:
    return pickles.read_pickle(path, path.read_bytes())


def wanted_globals(path: Path) -> tuple[str, ...]:
    return pickles.wanted_globals(path.read_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles")


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        dtype=st.sampled_from(["<i8", ">i4", "<f4", "u1", "?", "<U3"]),
        shape=arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
    ),
    st.booleans(),
)
def test_arrays_come_back_as_numpy_would_read_them(
    folder: Path, array: np.ndarray, fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    torch.save(array, folder / "a.pt")
    read = read_pickle(folder / "a.pt")
    assert isinstance(read, InertArray)
    back = read.to_numpy()
    assert back is not None
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize(
    "scalar", [np.int64(-3), np.float32(1.5), np.bool_(True), np.str_("ab"), np.uint8(200)]
)
def test_scalars_become_plain_python_values(folder: Path, scalar: np.generic) -> None:
    torch.save(scalar, folder / "s.pt")
    read = read_pickle(folder / "s.pt")
    assert type(read) in (int, float, bool, str)
    assert read == scalar.item()


def test_arrays_of_objects_stay_inert(folder: Path) -> None:
    torch.save(np.array([{"a": 1}, None], dtype=object), folder / "o.pt")
    read = read_pickle(folder / "o.pt")
    assert isinstance(read, InertObject)
    assert read.to_numpy() is None  # type: ignore[attr-defined]


def test_a_harmless_file_wants_nothing(folder: Path) -> None:
    content = {"w": torch.ones(2), "p": torch.nn.Parameter(torch.ones(1)), "n": np.float32(1)}
    for zipped in (True, False):
        torch.save(content, folder / "h.pt", _use_new_zipfile_serialization=zipped)
        assert wanted_globals(folder / "h.pt") == ()


def test_wanted_names_are_found_in_both_forms(folder: Path) -> None:
    for zipped in (True, False):
        torch.save(
            {"f": slice(1, 2), "g": len}, folder / "w.pt", _use_new_zipfile_serialization=zipped
        )
        assert wanted_globals(folder / "w.pt") == ("__builtin__.len", "__builtin__.slice")


def test_a_safetensors_file_whose_first_byte_looks_like_an_opcode(folder: Path) -> None:
    (folder / "c.safetensors").write_bytes(b"c\x00\x00\x00\x00\x00\x00\x00{a\nb\n.")
    assert wanted_globals(folder / "c.safetensors") == ()
