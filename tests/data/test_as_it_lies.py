"""Data as people have it: tables, exports and archives, and what of them must be refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image

from bdaudit.data import load_sample
from bdaudit.errors import DataError

NAMES = ("cat", "dog", "eel")
LABELS = [0, 1, 2, 1, 0, 2]


def picture(k: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(k: int, side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(k, side)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def expected(labels: list[int] = LABELS) -> torch.Tensor:
    images = np.stack([picture(k) for k in range(len(labels))])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def check(path: Path, *, names: tuple[str, ...] | None = NAMES, **options: Any) -> Any:
    """The six pictures with their labels, in any order."""
    sample = load_sample(path, **options)
    assert sample.class_names == names
    assert len(sample) == len(LABELS)
    images = expected()
    for image, label in zip(sample.images, sample.labels.tolist(), strict=True):
        (k,) = [k for k in range(len(LABELS)) if torch.equal(images[k], image)]
        assert LABELS[k] == label
    return sample


# --- tables ---------------------------------------------------------------------------------------


def pictures_in(folder: Path) -> Path:
    for k in range(len(LABELS)):
        write(folder / "img" / f"{k}.png", png(k))
    return folder


def table(mark: str = ",", columns: tuple[str, str] = ("path", "label"), named: bool = True) -> str:
    rows = [mark.join(columns)]
    rows += [
        mark.join((f"img/{k}.png", NAMES[label] if named else str(label)))
        for k, label in enumerate(LABELS)
    ]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", table()),
        ("list.csv", table(";")),
        ("list.tsv", table("\t")),
        ("list.csv", "\ufeff" + table(columns=("file_name", "Category"))),
        ("list.csv", table().replace("\n", "\r\n")),
        ("list.csv", table().replace("img/0.png,cat", '"img/0.png","cat"')),
    ],
)
def test_tables_of_names(tmp_path: Path, name: str, text: str) -> None:
    sample = check(write(pictures_in(tmp_path) / name, text))
    assert sample.names[0] == "img/0"
    assert any("numbered by their sorted names: cat, dog, eel" in note for note in sample.notes)


def test_a_table_of_numbers_and_of_json_lines(tmp_path: Path) -> None:
    pictures_in(tmp_path)
    check(write(tmp_path / "list.csv", table(named=False)), names=None)
    check(write(tmp_path / "list.csv", table(named=False)), names=NAMES, classes=NAMES)
    rows = [{"image": f"img/{k}.png", "label": n, "by": "me"} for k, n in enumerate(LABELS)]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    sample = check(write(tmp_path / "list.jsonl", lines), names=None)
    assert any("not read: 'by'" in note for note in sample.notes)


def test_names_given_settle_the_order(tmp_path: Path) -> None:
    path = write(pictures_in(tmp_path) / "list.csv", table())
    sample = load_sample(path, classes=("eel", "cat", "dog"))
    assert sample.labels.tolist() == [{0: 1, 1: 2, 2: 0}[label] for label in LABELS]
    with pytest.raises(DataError, match=r"'eel' is not among the 2"):
        load_sample(path, classes=("cat", "dog"))


@pytest.mark.parametrize("kind", ["list.csv", "list.tsv", "list.jsonl", "metadata.csv", "parquet"])
@pytest.mark.parametrize("named", [True, False])
def test_a_column_that_is_chosen(tmp_path: Path, kind: str, named: bool) -> None:
    """The usual names are there too, with other content: only what was asked for is read."""
    wanted = [NAMES[label] if named else label for label in LABELS]
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        held = {"shot": [png(k) for k in range(6)], "image": [png(k) for k in range(50, 56)]}
        pq.write_table(pa.table({**held, "breed": wanted, "label": [0, 1] * 3}), path)
    else:
        pictures_in(tmp_path)
        rows = [
            {"file_name": "no.png", "label": k % 2, "shot": f"img/{k}.png", "breed": value}
            for k, value in enumerate(wanted)
        ]
        mark = "\t" if kind.endswith("tsv") else ","
        lines = [mark.join(rows[0])] + [mark.join(map(str, row.values())) for row in rows]
        if kind.endswith("jsonl"):
            lines = [json.dumps(row) for row in rows]
        path = write(tmp_path / kind, "\n".join(lines) + "\n")
        path = path.parent if kind.startswith("metadata") else path
    columns = {"image_column": "shot", "label_column": "breed"}
    check(path, names=NAMES if named else None, **columns)
    check(path, names=NAMES, classes=NAMES, **columns)
    with pytest.raises(DataError, match=r"expected a column 'species' of labels.*breed"):
        load_sample(path, image_column="shot", label_column="species")
    with pytest.raises(DataError, match="expected a column 'nose' of"):
        load_sample(path, image_column="nose", label_column="breed")


def test_columns_of_what_has_none(tmp_path: Path) -> None:
    for k, label in enumerate(LABELS):
        write(tmp_path / "tree" / NAMES[label] / f"{k}.png", png(k))
    images = np.stack([picture(k) for k in range(6)])
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS)
    for path in (tmp_path / "tree", tmp_path / "a.npz"):
        check(path, names=None if path.suffix else NAMES)
        with pytest.raises(DataError, match=r"label_column 'label'.*leave that out"):
            load_sample(path, label_column="label")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata(tmp_path: Path, name: str) -> None:
    pictures_in(tmp_path)
    text = table(columns=("file_name", "label"))
    if name.endswith("jsonl"):
        rows = [line.split(",") for line in text.split("\n")[1:-1]]
        text = "\n".join(json.dumps({"file_name": a, "label": b}) for a, b in rows)
    write(tmp_path / name, text)
    check(tmp_path)


def test_two_lists_of_one_folder(tmp_path: Path) -> None:
    for name in ("metadata.csv", "metadata.jsonl"):
        write(pictures_in(tmp_path) / name, table())
    with pytest.raises(DataError, match="expected one list"):
        load_sample(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got none"),
        ("path,label\n", "got none"),
        ("a,b\nimg/0.png,1\n", "name it .--label-column, --image-column"),
        ("path,b\nimg/0.png,1\n", "expected a column of labels"),
        ("path,label\nimg/0.png\n", "more or fewer values"),
        ("path,label\nimg/0.png,1,2\n", "more or fewer values"),
        ("path,label,label\nimg/0.png,1,2\n", "one twice"),
        ("path,label\nimg/0.png,\nimg/1.png,1\n", "row 1 has no label"),
        ("path,label\n,1\nimg/1.png,1\n", "expected a path"),
        ("path,label\n../img/0.png,0\nimg/1.png,1\n", "outside the folder"),
        ("path,label\n/etc/passwd,0\nimg/1.png,1\n", "outside the folder"),
        ("path,label\nlink/secret.png,0\nimg/1.png,1\n", "leads out of"),
        ("path,label\nimg/0.png,0\nimg/0.png,1\n", "second time"),
        ("path,label\nimg/0.png,0\nimg/9.png,1\n", "cannot be read"),
        ("path,label\nimg/0.png,cat\nimg/1.png,c\u200bat\n", "invisible"),
        ("path,label\nimg/0.png," + "9" * 5000 + "\nimg/1.png,1\n", "5000 digits"),
        ('path,label\n"img/0.png,0\nimg/1.png,1\n', "no CSV"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    inside = pictures_in(tmp_path / "data")
    write(tmp_path / "secret" / "secret.png", png(0))
    (inside / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=said):
        load_sample(write(inside / "list.csv", text))


def test_rows_of_json_that_are_none(tmp_path: Path) -> None:
    for text in ("[1]\n", "{\n", '{"path": 3, "label": 1}\n', '{"path": "a", "label": [1]}\n'):
        with pytest.raises(DataError, match=r"list\.jsonl"):
            load_sample(write(pictures_in(tmp_path) / "list.jsonl", text))


# --- COCO -----------------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 10 + k, "file_name": f"{k}.png"} for k in range(len(LABELS))],
        "annotations": [
            {"id": k, "image_id": 10 + k, "category_id": 5 * label + 1, "bbox": [0, 0, 1, 1]}
            for k, label in enumerate(LABELS)
        ],
        "categories": [
            {"id": 11, "name": "eel"},
            {"id": 1, "name": "cat"},
            {"id": 6, "name": "dog"},
        ],
        **changes,
    }


@pytest.mark.parametrize("place", ["", "images", "data"])
def test_an_export_in_cocos_form(tmp_path: Path, place: str) -> None:
    for k in range(len(LABELS)):
        write(tmp_path / place / f"{k}.png", png(k))
    check(write(tmp_path / "labels.json", json.dumps(coco())))


def test_a_folder_as_roboflow_exports_it(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        shutil.copytree(pictures_in(tmp_path / "source") / "img", tmp_path / "set" / part)
        write(tmp_path / "set" / part / "_annotations.coco.json", json.dumps(coco()))
    sample = check(tmp_path / "set")
    assert "read the part 'test', not 'train', 'valid'" in sample.notes
    shutil.rmtree(tmp_path / "set" / "test")
    assert "read the part 'valid', not 'train'" in check(tmp_path / "set").notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "expected the lists"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "one twice"),
        ({"categories": [{"id": 1, "name": "a"}]}, "unknown category"),
        ({"annotations": [{"image_id": 10, "category_id": c} for c in (1, 6)]}, "one class an"),
        ({"images": [{"id": 10, "file_name": "../x.png"}]}, "outside the folder"),
        ({"images": [{"id": 10, "file_name": 3}]}, "expected a text"),
        ({"images": [{"id": "x", "file_name": "0.png"}]}, "expected a whole number"),
        ({"images": [{"id": 10 + k // 2, "file_name": "0.png"} for k in (0, 2)]}, "second time"),
    ],
)
def test_cocos_that_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    for k in range(len(LABELS)):
        write(tmp_path / f"{k}.png", png(k))
    with pytest.raises(DataError, match=said):
        load_sample(write(tmp_path / "labels.json", json.dumps(coco(**changes))))


# --- parts of a folder ----------------------------------------------------------------------------


def test_the_held_out_part_of_a_folder_is_chosen_and_said(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for k, label in enumerate(LABELS):
            write(tmp_path / part / NAMES[label] / f"{k}.png", png(k if part != "train" else 99))
    assert "read the part 'validation', not 'train'" in check(tmp_path).notes
    assert "read the part 'train', not 'validation'" in load_sample(tmp_path, split="train").notes
    shutil.copytree(tmp_path / "validation", tmp_path / "test")
    assert "read the part 'test', not 'train', 'validation'" in check(tmp_path).notes
    shutil.copytree(tmp_path / "validation", tmp_path / "testing")
    with pytest.raises(DataError, match="one test part, got test, testing"):
        load_sample(tmp_path)


def test_a_folder_of_training_images_alone_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "0.png", png(0))
    with pytest.raises(DataError, match="expected a part called test or validation, got train"):
        load_sample(tmp_path)


# --- parquet --------------------------------------------------------------------------------------

FEATURES = {"label": {"names": list(NAMES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}


def parquet(
    path: Path, labels: list[Any], images: list[Any], *, features: Any = FEATURES, **options: Any
) -> Path:
    """As `datasets` writes it: bytes and path of each image, and the features in the schema."""
    data = pa.table({"image": images, "label": labels})
    if features is not None:
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        data = data.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, path, row_group_size=2, **options)
    return path


def structs(keys: range = range(len(LABELS))) -> list[dict[str, Any]]:
    return [{"bytes": png(k), "path": f"{k}.png"} for k in keys]


def test_parquet_files(tmp_path: Path) -> None:
    sample = check(parquet(tmp_path / "a.parquet", LABELS, structs()))
    assert sample.names[0] == "a/0"
    bare = [png(k) for k in range(len(LABELS))]
    check(parquet(tmp_path / "b.parquet", LABELS, bare, features=None), names=None)
    named = [NAMES[label] for label in LABELS]
    check(parquet(tmp_path / "c.parquet", named, bare, features=None, compression="zstd"))


def test_a_folder_of_parquet_files_and_a_limit(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [0, 1], structs(range(90, 92)))
    for part, keys in (("0", range(3)), ("1", range(3, 6))):
        labels = [LABELS[k] for k in keys]
        parquet(tmp_path / "data" / f"test-0000{part}-of-00002.parquet", labels, structs(keys))
    assert "read the part 'test', not 'train'" in check(tmp_path).notes
    few = load_sample(tmp_path, limit=3)
    assert len(few) == 3
    images = expected()
    for image, label in zip(few.images, few.labels.tolist(), strict=True):
        (k,) = [k for k in range(6) if torch.equal(images[k], image)]
        assert LABELS[k] == label


def test_images_of_several_sizes_are_resized_and_said(tmp_path: Path) -> None:
    mixed = [{"bytes": png(k, side=4 + k), "path": None} for k in range(len(LABELS))]
    path = parquet(tmp_path / "a.parquet", LABELS, mixed)
    sample = load_sample(path, image_shape=(3, 4, 4))
    assert any("resized" in note for note in sample.notes)
    with pytest.raises(DataError, match="give the model's image shape"):
        load_sample(path)


@pytest.mark.parametrize(
    ("labels", "images", "said"),
    [
        (LABELS, [{"bytes": None, "path": "/etc/passwd"}] * 6, "holds no image but a path"),
        (LABELS, ["/etc/passwd"] * 6, "expected encoded images"),
        (LABELS, [b"no picture"] * 6, "6 of 6 images cannot be read"),
        ([0, 1, 2, None, 0, 1], structs(), "row 4 has no label"),
        ([[0]] * 6, structs(), "a number or a name"),
        ([0.5] * 6, structs(), "a number or a name"),
        ([0, 1, 2, 3, 0, 1], structs(), "out of range"),
    ],
)
def test_parquet_that_is_refused(
    tmp_path: Path, labels: list[Any], images: list[Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        load_sample(parquet(tmp_path / "a.parquet", labels, images))


def test_damaged_parquet(tmp_path: Path) -> None:
    raw = parquet(tmp_path / "a.parquet", LABELS, structs()).read_bytes()
    for broken in (b"", b"PAR1", raw[:-9], raw[: len(raw) // 2], b"PAR1" + b"\xff" * 200 + b"PAR1"):
        with pytest.raises(DataError, match=r"b\.parquet"):
            load_sample(write(tmp_path / "b.parquet", broken))


# --- WebDataset -----------------------------------------------------------------------------------


def shard(path: Path, keys: range = range(len(LABELS)), form: str = "cls") -> Path:
    """By WebDataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for k in keys:
            label: Any = LABELS[k % 6]
            sample = {"__key__": f"sample{k:06d}", "png": png(k)}
            if form == "json":
                sample["json"] = {"label": NAMES[label], "url": "x"}
            elif form == "names":
                sample["cls"] = NAMES[label].encode()
            else:
                sample["cls"] = label
            writer.write(sample)
    return path


@pytest.mark.parametrize(("form", "names"), [("cls", None), ("json", NAMES), ("names", NAMES)])
def test_shards_of_webdataset(tmp_path: Path, form: str, names: Any) -> None:
    sample = check(shard(tmp_path / "a.tar", form=form), names=names)
    assert sample.names[0] == "a/sample000000"


def test_a_folder_of_shards(tmp_path: Path) -> None:
    shard(tmp_path / "train-000000.tar", range(90, 92))
    shard(tmp_path / "test-000000.tar", range(3))
    shard(tmp_path / "test-000001.tar", range(3, 6))
    assert "read the part 'test', not 'train'" in check(tmp_path, names=None).notes
    sample = load_sample(tmp_path, classes=NAMES)
    assert sample.class_names == NAMES


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _link_in(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


def _endless_header(path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 4096)
    os.truncate(path, 5 << 30)  # sparse, so that the header's size is there


SPOILED_TARS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "tar shard"),
    "noise": (lambda p: p.write_bytes(os.urandom(5000)), "tar shard"),
    "compressed": (lambda p: tarfile.open(p, "w:gz").close(), "tar shard"),
    "no label": (lambda p: tar_of(p, ("a.png", png(0))), "expected a label"),
    "no images": (lambda p: tar_of(p, ("a.cls", b"1")), "expected images"),
    "two images": (lambda p: tar_of(p, ("a.png", png(0)), ("a.jpg", png(1))), "second image"),
    "two labels": (
        lambda p: tar_of(p, ("a.png", png(0)), ("a.cls", b"1"), ("a.json", b'{"label": "2"}')),
        "second label",
    ),
    "a long label": (lambda p: tar_of(p, ("a.png", png(0)), ("a.cls", b"1" * 70000)), "a label"),
    "a picture too large": (
        lambda p: tar_of(p, ("a.png", b"\0" * ((64 << 20) + 1)), ("a.cls", b"1")),
        "larger than a picture",
    ),
    "links": (_link_in, "expected images"),
    "a header of gigabytes": (_endless_header, "more than a picture has"),
}


@pytest.mark.parametrize("what", SPOILED_TARS)
def test_shards_that_are_refused(tmp_path: Path, what: str) -> None:
    spoil, said = SPOILED_TARS[what]
    spoil(tmp_path / "a.tar")
    with pytest.raises(DataError, match=said):
        load_sample(tmp_path / "a.tar")


# --- zip ------------------------------------------------------------------------------------------


def zip_of(path: Path, entries: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def folders(top: str = "", part: str = "") -> dict[str, bytes]:
    return {f"{top}{part}{NAMES[n]}/{k}.png": png(k) for k, n in enumerate(LABELS)}


def test_zip_archives_of_class_folders(tmp_path: Path) -> None:
    for k, label in enumerate(LABELS):
        write(tmp_path / "set" / NAMES[label] / f"{k}.png", png(k))
    made = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "set")
    sample = check(Path(made))
    assert sample.names[0] == "cat/0"
    check(Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "set")))
    beside = {**folders("top/"), "top/README.md": b"x", "__MACOSX/._0.png": b"x"}
    noted = check(zip_of(tmp_path / "c.zip", beside))
    assert any("skipped 1 files that are not images" in note for note in noted.notes)
    parts = {**folders("top/", "train/"), **folders("top/", "test/")}
    assert "read the part 'test', not 'train'" in check(zip_of(tmp_path / "d.zip", parts)).notes
    numbers = {f"{n}/{k}.png": png(k) for k, n in enumerate(LABELS)}
    check(zip_of(tmp_path / "e.zip", numbers), names=None)
    check(zip_of(tmp_path / "f.zip", numbers), classes=NAMES)


def _symbolic(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("cat/0.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")


def _bomb(path: Path) -> None:
    zip_of(path, {"cat/0.png": b"\0" * (65 << 20), "dog/1.png": png(1)})


def _lying(path: Path) -> None:
    """An entry that says it is small and unpacks to gigabytes' worth of zeros."""
    zip_of(path, {"cat/0.png": b"\0" * (60 << 20), "dog/1.png": png(1)})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, at + 24, 1000)
    path.write_bytes(raw)


def _damaged(path: Path) -> None:
    zip_of(path, folders())
    raw = bytearray(path.read_bytes())
    raw[80] ^= 0xFF
    path.write_bytes(raw)


def _encrypted(path: Path) -> None:
    zip_of(path, folders())
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    struct.pack_into("<H", raw, at + 8, 1)
    path.write_bytes(raw)


SPOILED_ZIPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "expected a zip archive"),
    "noise": (lambda p: p.write_bytes(os.urandom(5000)), "expected a zip archive"),
    "no images": (lambda p: zip_of(p, {"a.txt": b"x"}), "archive of class folders"),
    "loose images": (lambda p: zip_of(p, {"a.png": png(0), "b.png": png(1)}), "class folders"),
    "up": (lambda p: zip_of(p, {"../cat/0.png": png(0)}), "leads out of the archive"),
    "root": (lambda p: zip_of(p, {"/cat/0.png": png(0)}), "leads out of the archive"),
    "a link": (_symbolic, "is a link"),
    "a bomb": (_bomb, "more than a picture has"),
    "a bomb that lies": (_lying, "cannot be (read|unpacked)"),
    "damaged": (_damaged, "cannot be (read|unpacked)"),
    "encrypted": (_encrypted, "is encrypted"),
    "training images alone": (
        lambda p: zip_of(p, folders("", "train/")),
        "expected a part called test or validation",
    ),
}


@pytest.mark.parametrize("what", SPOILED_ZIPS)
def test_archives_that_are_refused(tmp_path: Path, what: str) -> None:
    spoil, said = SPOILED_ZIPS[what]
    spoil(tmp_path / "a.zip")
    started = time.process_time()
    with pytest.raises(DataError, match=said):
        load_sample(tmp_path / "a.zip")
    assert time.process_time() - started < 10


def test_an_entry_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dog/0.png", png(2))
        archive.writestr("cat/0.png", png(0))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/0.png", png(1))
    with pytest.raises(DataError, match="there twice"):
        load_sample(path)


def test_a_picture_that_promises_too_much(tmp_path: Path) -> None:
    """The limits on pixels hold inside archives too."""
    stream = io.BytesIO()
    Image.new("1", (40_000, 1)).save(stream, "PNG")
    path = zip_of(tmp_path / "a.zip", {**folders(), "cat/9.png": stream.getvalue()})
    with pytest.raises(DataError, match=r"1 of 7 images cannot be read.*pixels"):
        load_sample(path)
