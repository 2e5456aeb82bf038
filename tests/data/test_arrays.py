"""Samples from arrays, in memory and in files."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bdaudit.data import from_arrays, load_sample
from bdaudit.errors import DataError
from bdaudit.foundation.digests import digest_tensors

LABELS = np.array([0, 1, 1, 2])


def colour(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)


def test_bytes_and_floats_in_either_layout_are_the_same_sample() -> None:
    last = colour()
    first = last.transpose(0, 3, 1, 2)
    samples = [
        from_arrays(last, LABELS),
        from_arrays(first, LABELS),
        from_arrays((first / 255).astype(np.float32), LABELS.astype(np.uint8)),
        from_arrays(torch.from_numpy(first.copy()), LABELS.tolist()),
        from_arrays(first.astype(np.float64) / 255, LABELS[:, None]),
    ]
    assert len({sample.sha256 for sample in samples}) == 1
    sample = samples[0]
    assert sample.images.shape == (4, 3, 5, 6)
    assert sample.images[1, 2, 3, 4] == last[1, 3, 4, 2] / np.float32(255)
    assert sample.names == ("0", "1", "2", "3")


def test_digest_covers_images_and_labels() -> None:
    sample = from_arrays(colour(), LABELS)
    assert sample.sha256 == digest_tensors({"images": sample.images, "labels": sample.labels})
    changed = colour()
    changed[0, 0, 0, 0] ^= 1
    assert from_arrays(changed, LABELS).sha256 != sample.sha256
    assert from_arrays(colour(), LABELS[::-1]).sha256 != sample.sha256


def test_the_caller_keeps_its_array() -> None:
    images = torch.rand(4, 1, 2, 2)
    before = images.clone()
    sample = from_arrays(images, LABELS)
    sample.images.zero_()
    assert torch.equal(images, before)


def test_an_open_layout_is_settled_by_the_image_shape_only() -> None:
    images = np.random.default_rng(0).random((4, 3, 5, 3), dtype=np.float32)
    with pytest.raises(DataError, match="may be"):
        from_arrays(images, LABELS)
    assert (
        from_arrays(images, LABELS, image_shape=(3, 5, 3)).images[0, 0, 1, 2] == images[0, 0, 1, 2]
    )
    assert (
        from_arrays(images, LABELS, image_shape=(3, 3, 5)).images[0, 0, 1, 2] == images[0, 1, 2, 0]
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((4, 1, 2, 2), 200.0), "divide by 255"),
        (np.full((4, 1, 2, 2), -1.5), "undo the normalisation"),
        (np.full((4, 1, 2, 2), np.nan), "NaN"),
        (np.ones((4, 1, 2, 2), dtype=np.uint8), "largest value is 1"),
        (np.ones((4, 1, 2, 2), dtype=np.int64), "int64"),
        (np.zeros((4, 5, 2, 7)), "neither 1 nor 3"),
        (np.zeros((3, 1, 2, 2)), "labels"),
        (np.zeros((4, 4)), "expected images"),
        (np.array([None] * 4), "expected numbers"),
    ],
)
def test_images_that_cannot_be_right(images: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(images, LABELS, source="s")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 1, 1, 1], "all 4 images have label 1"),
        ([0, 1, -1, 2], "got -1"),
        (np.eye(4), "argmax"),
        (np.array([0.0, 1, 2, 3]), "integer labels"),
    ],
)
def test_labels_that_cannot_be_right(labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(colour(), labels)  # type: ignore[arg-type]


def test_label_beyond_the_class_names() -> None:
    with pytest.raises(DataError, match="label 2 is out of range"):
        from_arrays(colour(), LABELS, class_names=["a", "b"])


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("x_test", "y_test")])
def test_npz_and_safetensors_hold_the_same_sample(tmp_path: Path, keys: tuple[str, str]) -> None:
    arrays = {keys[0]: colour(), keys[1]: LABELS}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    save_file({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "a.safetensors")
    one, two = load_sample(tmp_path / "a.npz"), load_sample(tmp_path / "a.safetensors")
    assert one.sha256 == two.sha256 == from_arrays(colour(), LABELS).sha256


def test_the_split_chooses_between_keras_keys(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "k.npz", x_train=colour(4), y_train=LABELS, x_test=colour(2), y_test=LABELS[:2]
    )
    assert len(load_sample(tmp_path / "k.npz", split="train")) == 4
    assert len(load_sample(tmp_path / "k.npz")) == 2


def test_pickled_objects_in_an_npz_are_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    images = np.empty(4, dtype=object)
    images[:] = [Evil()] * 4
    np.savez(tmp_path / "evil.npz", images=images, labels=LABELS)
    with pytest.raises(DataError, match="without pickled objects"):
        load_sample(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_junk_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\."):
        load_sample(path)


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=colour(), labels=LABELS)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.npz"):
        load_sample(tmp_path / "a.npz")


def test_missing_key_lists_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures=colour(), labels=LABELS)
    with pytest.raises(DataError, match=r"images or x or data, found labels, pictures"):
        load_sample(tmp_path / "a.npz")


def test_arrays_that_are_neither_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=colour(), labels=LABELS, weights=LABELS, who=np.array("me"))
    (note,) = [n for n in load_sample(tmp_path / "a.npz").notes if "skipped" in n]
    assert note.endswith("weights, who")
    np.savez(tmp_path / "b.npz", x_train=colour(), y_train=LABELS, x_test=colour(), y_test=LABELS)
    assert not any("skipped" in n for n in load_sample(tmp_path / "b.npz").notes)


@pytest.mark.parametrize("second", ["x", "images_test", "data"])
def test_two_arrays_that_could_be_the_images(tmp_path: Path, second: str) -> None:
    np.savez(tmp_path / "a.npz", images=colour(), labels=LABELS, **{second: colour()})
    with pytest.raises(DataError, match="could each be meant"):
        load_sample(tmp_path / "a.npz")


def test_what_was_done_to_arrays_is_said() -> None:
    notes = from_arrays(colour(), LABELS, image_shape=(1, 8, 8)).notes
    assert notes == (
        "images were read as (N, H, W, C)",
        "4 of 4 images: colour weighed to grey, as the model takes 1",
        "4 of 4 images resized from 5x6 to 8x8",
    )
    first = colour().transpose(0, 3, 1, 2)
    assert from_arrays(first, LABELS, image_shape=(3, 5, 6)).notes == ()


def test_images_divided_by_255_twice() -> None:
    with pytest.raises(DataError, match="twice"):
        from_arrays(torch.rand(4, 1, 5, 5) / 255, LABELS)


def npy(header: str, content: bytes = b"") -> bytes:
    text = (header + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    "array",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 1000000, 1000), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, -1), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }", b"123"),
        npy("(" * 5000),
        npy("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,), }", b"1"),
        b"\x93NUMPY\x09\x00",
        b"",
    ],
    ids=["huge", "negative", "objects", "longer", "deep", "fields", "version", "empty"],
)
def test_array_headers_that_promise_other_things(tmp_path: Path, array: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", array)
        archive.writestr("labels.npy", array)
    with pytest.raises(DataError, match=r"a\.npz"):
        load_sample(tmp_path / "a.npz")


def test_arrays_in_column_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(colour()), labels=LABELS)
    assert load_sample(tmp_path / "a.npz").sha256 == from_arrays(colour(), LABELS).sha256


@pytest.mark.parametrize("kind", ["F4", "F8_E8M0", "X9", "I64"])
def test_safetensors_of_types_that_are_no_images(tmp_path: Path, kind: str) -> None:
    content = b"\0" * 32
    size = {"F4": 16, "I64": 256}.get(kind, 32)
    header = json.dumps(
        {
            "images": {"dtype": kind, "shape": [2, 1, 4, 4], "data_offsets": [0, size]},
            "labels": {"dtype": "I64", "shape": [2], "data_offsets": [size, size + 16]},
        }
    ).encode()
    raw = len(header).to_bytes(8, "little") + header + content[:16].ljust(size + 16, b"\0")
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(DataError, match=r"images|safetensors"):
        load_sample(tmp_path / "a.safetensors")


def test_images_without_pixels() -> None:
    with pytest.raises(DataError, match="no pixels"):
        from_arrays(np.zeros((4, 3, 0, 0), dtype=np.uint8), LABELS)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_a_pipe_is_no_file_of_arrays(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe"):
        load_sample(tmp_path / name)
