"""Folders of class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdaudit.data import load_sample
from bdaudit.errors import ConfigError, DataError


def add(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(path)
    return path


def test_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    for name in ("dog", "cat", "owl"):
        add(tmp_path / name / "deep" / "1.png")
        add(tmp_path / name / "0.jpg")
    (tmp_path / "dog" / ".DS_Store").write_text("not an image")
    (tmp_path / "dog" / "notes.txt").write_text("nor this")
    sample = load_sample(tmp_path)
    assert sample.class_names == ("cat", "dog", "owl")
    assert dict(zip(sample.names, sample.labels.tolist(), strict=True)) == {
        "cat/0": 0, "cat/deep/1": 0, "dog/0": 1, "dog/deep/1": 1, "owl/0": 2, "owl/deep/1": 2,
    }  # fmt: skip


def test_folders_that_are_integers_are_their_own_index(tmp_path: Path) -> None:
    for name in ("10", "2", "007"):
        add(tmp_path / name / "a.png", int(name))
    sample = load_sample(tmp_path)
    assert sample.class_names is None
    assert (sample.images[:, 0, 0, 0] * 255).round().tolist() == sample.labels.tolist()
    assert sorted(sample.labels.tolist()) == [2, 7, 10]


def test_class_names_decide_the_index(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / "data" / name / "a.png")
    in_argument = load_sample(tmp_path / "data", classes=["dog", "owl", "cat"])
    (tmp_path / "names.txt").write_text("dog\nowl\ncat\n\n")
    in_file = load_sample(tmp_path / "data", classes=tmp_path / "names.txt")
    (tmp_path / "data" / "classes.txt").write_text("dog\nowl\ncat\n")
    in_folder = load_sample(tmp_path / "data")
    for sample in (in_argument, in_file, in_folder):
        assert sample.class_names == ("dog", "owl", "cat")
        assert sample.labels.tolist() == [2, 0]


def test_numbered_folders_take_display_names_from_the_list(tmp_path: Path) -> None:
    for name in ("0", "2"):
        add(tmp_path / name / "a.png")
    sample = load_sample(tmp_path, classes=["plane", "car", "bird"])
    assert sample.labels.tolist() == [0, 2]
    assert sample.class_names == ("plane", "car", "bird")
    with pytest.raises(DataError, match="label 2 is out of range"):
        load_sample(tmp_path, classes=["plane", "car"])


def test_a_folder_that_is_not_among_the_names(tmp_path: Path) -> None:
    for name in ("cat", "dogs"):
        add(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=r"'dogs'.*did you mean 'dog'"):
        load_sample(tmp_path, classes=["cat", "dog"])


@pytest.mark.parametrize("content", ["", "cat\ncat\n", "cat\n\ndog\n"])
def test_a_bad_list_of_classes(tmp_path: Path, content: str) -> None:
    add(tmp_path / "cat" / "a.png")
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=r"classes\.txt"):
        load_sample(tmp_path)


def test_what_is_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_sample(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no class folders"):
        load_sample(tmp_path)
    add(tmp_path / "only" / "a.png")
    with pytest.raises(DataError, match="all 1 images have label 0"):
        load_sample(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.pt"):
        load_sample(tmp_path / "weights.pt")


def test_loose_images_and_splits_are_pointed_out(tmp_path: Path) -> None:
    for name in ("train", "test"):
        add(tmp_path / "splits" / name / "cat" / "a.png")
    with pytest.raises(DataError, match="splits"):
        load_sample(tmp_path / "splits")
    add(tmp_path / "loose" / "cat" / "a.png")
    add(tmp_path / "loose" / "b.png")
    with pytest.raises(DataError, match=r"b\.png"):
        load_sample(tmp_path / "loose")


def test_two_spellings_of_one_number(tmp_path: Path) -> None:
    for name in ("1", "01"):
        add(tmp_path / name / "a.png")
    with pytest.raises(DataError, match="same number"):
        load_sample(tmp_path)


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    secret = add(tmp_path / "elsewhere" / "secret.png")
    data = tmp_path / "data"
    inside = add(data / "cat" / "a.png")
    add(data / "dog" / "a.png")
    (data / "dog" / "b.png").symlink_to(inside)
    assert len(load_sample(data)) == 3
    (data / "dog" / "c.png").symlink_to(secret)
    with pytest.raises(DataError, match="leads out"):
        load_sample(data)
    (data / "dog" / "c.png").unlink()
    (data / "owl").symlink_to(secret.parent)
    with pytest.raises(DataError, match="leads out"):
        load_sample(data)


def test_a_limit_decodes_only_what_it_takes(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for index in range(20):
            add(tmp_path / label / f"{index:02}.png", index)
    taken = load_sample(tmp_path, limit=6, seed=3)
    assert taken.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert taken.names == load_sample(tmp_path, limit=6, seed=3).names
    assert taken.names != load_sample(tmp_path, limit=6, seed=4).names
    for path in tmp_path.rglob("*.png"):
        if path.relative_to(tmp_path).with_suffix("").as_posix() not in taken.names:
            path.write_bytes(b"never read")
    assert load_sample(tmp_path, limit=6, seed=3).sha256 == taken.sha256


def test_a_limit_of_one_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        load_sample(tmp_path, limit=1)
