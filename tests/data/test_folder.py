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
    with pytest.raises(DataError, match="No such file"):
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


def notes_of(path: Path, **options: object) -> str:
    return "\n".join(load_sample(path, **options).notes)  # type: ignore[arg-type]


def test_an_empty_folder_keeps_its_place(tmp_path: Path) -> None:
    for name in ("cat", "owl"):
        add(tmp_path / name / "a.png")
    (tmp_path / "dog").mkdir()
    sample = load_sample(tmp_path)
    assert sample.class_names == ("cat", "dog", "owl")
    assert sample.labels.tolist() == [0, 2]


def test_folders_are_looked_up_as_a_person_reads_them(tmp_path: Path) -> None:
    """macOS writes letters and their marks apart; a list of classes has them in one."""
    for name in ("cafe\u0301", "zoo\u200b"):
        add(tmp_path / "data" / name / "a.png")
    sample = load_sample(tmp_path / "data", classes=["zoo", "caf\u00e9"])
    assert sample.labels.tolist() == [1, 0]
    add(tmp_path / "data" / "caf\u00e9" / "a.png")
    with pytest.raises(DataError, match="look the same"):
        load_sample(tmp_path / "data")


@pytest.mark.parametrize(
    "content",
    [
        b"dog\r\nowl\r\ncat\r\n",
        b"\xef\xbb\xbfdog\nowl\ncat\n",
        "dog\nowl\ncat".encode("utf-16"),
        b"dog \nowl\t\ncat\n\n\n",
    ],
)
def test_lists_of_classes_that_look_the_same_are_the_same(tmp_path: Path, content: bytes) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / "data" / name / "a.png")
    (tmp_path / "names.txt").write_bytes(content)
    sample = load_sample(tmp_path / "data", classes=tmp_path / "names.txt")
    assert sample.class_names == ("dog", "owl", "cat")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("cat\ndog\u200b\n", r"class name 2.*U\+200B"),
        ("cat\nbig\u00a0dog\n", r"U\+00A0 \(no-break space\)"),
        ("cat\ndog\u2028owl\n", r"U\+2028"),
        ("cafe\u0301\ncaf\u00e9\n", "names 1 and 2 look the same"),
        ("cat\x1b[31m\n", r"U\+001B"),
    ],
)
def test_names_that_nobody_can_tell_apart(tmp_path: Path, names: str, complaint: str) -> None:
    add(tmp_path / "data" / "cat" / "a.png")
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        load_sample(tmp_path / "data", classes=tmp_path / "names.txt")


def test_two_lists_of_one_data_set_must_agree(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / name / "a.png")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert load_sample(tmp_path, classes=["dog", "cat"]).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"class 0 is 'cat' by .*'dog' by .*classes\.txt"):
        load_sample(tmp_path, classes=["cat", "dog"])
    with pytest.raises(DataError, match=r"3 classes .* has 2"):
        load_sample(tmp_path, classes=["dog", "cat", "owl"])


def test_another_way_to_number_the_folders_is_said(tmp_path: Path) -> None:
    for number in range(11):
        add(tmp_path / "plain" / str(number) / "a.png")
        add(tmp_path / "padded" / f"{number:03}" / "a.png")
        add(tmp_path / "names" / f"class{number}" / "a.png")
    assert "'10' is class 10" in notes_of(tmp_path / "plain")
    assert "it would be class 2" in notes_of(tmp_path / "plain")
    assert notes_of(tmp_path / "padded") == ""
    assert load_sample(tmp_path / "names").labels.tolist() == list(range(11))
    assert "'class10' is class 2" in notes_of(tmp_path / "names")


def test_files_that_are_passed_over_are_said(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / name / "a.png")
    (tmp_path / "dog" / "b.avif").write_bytes(b"x")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    said = notes_of(tmp_path)
    assert "skipped 1 files" in said
    assert "dog/b.avif" in said


@pytest.mark.parametrize("name", ["9" * 12, "9" * 200, "1" + "0" * 18])
def test_a_folder_called_like_a_huge_number(tmp_path: Path, name: str) -> None:
    for folder in ("0", name):
        add(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match="digits"):
        load_sample(tmp_path)


def test_a_linked_folder_inside_is_refused_and_a_ring_is_no_error_of_ours(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / name / "a.png")
    (tmp_path / "owl").symlink_to(tmp_path / "cat")
    with pytest.raises(DataError, match="link to a folder"):
        load_sample(tmp_path)
    (tmp_path / "owl").unlink()
    (tmp_path / "dog" / "b.png").symlink_to(tmp_path / "dog" / "c.png")
    (tmp_path / "dog" / "c.png").symlink_to(tmp_path / "dog" / "b.png")
    with pytest.raises(DataError, match=r"b\.png"):
        load_sample(tmp_path)
