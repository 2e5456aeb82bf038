"""On-disk layouts of well-known data sets, written here as their authors write them."""

from __future__ import annotations

import gzip
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bdaudit.data import load_poisoned_tree, load_sample
from bdaudit.data.cifar import load_plain_pickle
from bdaudit.errors import DataError

RNG = np.random.default_rng(0)


# --- idx -----------------------------------------------------------------------------------------


def idx_bytes(values: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def write_idx(folder: Path, prefix: str, *, zipped: bool) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 3, 3, 1, 2], dtype=np.uint8)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{name}-ubyte"
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            path.write_bytes(idx_bytes(values))
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_idx_folder(tmp_path: Path, zipped: bool) -> None:
    images, labels = write_idx(tmp_path, "t10k", zipped=zipped)
    sample = load_sample(tmp_path)
    assert torch.equal(sample.images, torch.from_numpy(images)[:, None] / 255)
    assert sample.labels.tolist() == labels.tolist()
    with pytest.raises(DataError, match="train-images"):
        load_sample(tmp_path, split="train")


def test_fashion_mnist_agrees_with_torchvision(tmp_path: Path) -> None:
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "FashionMNIST" / "raw", prefix, zipped=False)
    for split in ("train", "test"):
        oracle = torchvision.datasets.FashionMNIST(tmp_path, train=split == "train")
        sample = load_sample(tmp_path, split=split)  # type: ignore[arg-type]
        assert torch.equal((sample.images[:, 0] * 255).round().byte(), oracle.data)
        assert torch.equal(sample.labels, oracle.targets)
        assert list(sample.class_names or ()) == oracle.classes


def test_two_sets_of_mnist_form_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("MNIST", "FashionMNIST"):
        write_idx(tmp_path / name / "raw", "t10k", zipped=False)
    with pytest.raises(DataError, match="several"):
        load_sample(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100],
        lambda content: content + b"\0",
        lambda content: b"\x1f\x8b" + content,
        lambda content: content[:4] + b"\xff" * 12 + content[16:],
        lambda content: content[:2] + b"\x0d" + content[3:],
        lambda content: b"",
    ],
)
def test_damaged_idx(tmp_path: Path, damage: object) -> None:
    write_idx(tmp_path, "t10k", zipped=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match="idx"):
        load_sample(tmp_path)


def test_truncated_gzip(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="t10k-images"):
        load_sample(tmp_path)


# --- CIFAR ---------------------------------------------------------------------------------------

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar10(root: Path, *, protocol: int) -> tuple[np.ndarray, list[int]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    data = RNG.integers(0, 256, (12, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(12)]
    for name, part in {
        **{f"data_batch_{i + 1}": slice(2 * i, 2 * i + 2) for i in range(5)},
        "test_batch": slice(10, 12),
    }.items():
        batch = {
            "data": data[part],
            "labels": labels[part],
            "batch_label": name,
            "filenames": ["a"],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    meta = {"label_names": list(CIFAR10), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return data, labels


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("give_parent", [True, False])
def test_cifar10(tmp_path: Path, protocol: int, give_parent: bool) -> None:
    data, labels = write_cifar10(tmp_path, protocol=protocol)
    where = tmp_path if give_parent else tmp_path / "cifar-10-batches-py"
    test, train = load_sample(where), load_sample(where, split="train")
    assert torch.equal((train.images * 255).round().byte().flatten(1), torch.from_numpy(data[:10]))
    assert torch.equal((test.images * 255).round().byte().flatten(1), torch.from_numpy(data[10:]))
    assert train.labels.tolist() + test.labels.tolist() == labels
    assert test.class_names == CIFAR10


def test_cifar_found_from_inside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path, protocol=2)
    monkeypatch.chdir(tmp_path / "cifar-10-batches-py")
    assert len(load_sample(".")) == 2


def test_cifar_as_python_2_wrote_it() -> None:
    # Python 2 stores the bytes of an array as 8-bit text (opcode T), under numpy's old names.
    raw = bytes(range(250, 256)) + bytes(6)
    content = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq"
        b"\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02K\x06\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x0c\x00\x00\x00"
        + raw
        + b"tb"
        b"U\x06labels]q\x06(K\x06K\x09eu."
    )
    batch = load_plain_pickle(content)
    assert batch["data"].tolist() == [list(raw[:6]), list(raw[6:])]
    assert batch["labels"] == [6, 9]


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
    batch = {"data": data, "fine_labels": [99, 0, 5], "coarse_labels": [1, 1, 1]}
    (folder / "test").write_bytes(pickle.dumps(batch, protocol=2))
    sample = load_sample(tmp_path)
    assert sample.labels.tolist() == [99, 0, 5]
    assert sample.class_names is None


class TouchesFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_hostile_cifar_pickle_runs_nothing(tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol=2)
    hostile = {"data": TouchesFile(tmp_path / "ran"), "labels": [0, 1]}
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(DataError, match="hostile"):
        load_sample(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wanted", [b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\nload\n"])
def test_no_name_outside_the_five_is_known(wanted: bytes) -> None:
    with pytest.raises(DataError, match="hostile"):
        load_plain_pickle(wanted + b"(S'x'\ntR.")


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"data": np.zeros((2, 3072)), "labels": [0, 1]},
        {"data": np.zeros((2, 3000), dtype=np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, "1"]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0]},
        {"labels": [0, 1]},
    ],
)
def test_damaged_cifar(tmp_path: Path, batch: object) -> None:
    write_cifar10(tmp_path, protocol=2)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        load_sample(tmp_path)


def test_truncated_and_missing_cifar(tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol=2)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="test_batch"):
        load_sample(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="test_batch"):
        load_sample(tmp_path)


# --- GTSRB ---------------------------------------------------------------------------------------


def write_gtsrb(root: Path) -> Path:
    base = root / "gtsrb"
    for label in (0, 7):
        folder = base / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        Image.fromarray(np.full((8, 9, 3), label, dtype=np.uint8)).save(folder / "0_0.ppm")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    rows = ["Filename;Width;Height;ClassId"]
    for index, label in enumerate((16, 1, 38)):
        pixels = np.full((10 + index, 12, 3), label, dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index:05}.ppm")
        rows.append(f"{index:05}.ppm;12;{10 + index};{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return base


def test_gtsrb_agrees_with_torchvision(tmp_path: Path) -> None:
    base = write_gtsrb(tmp_path)
    oracle = torchvision.datasets.GTSRB(tmp_path, split="test")
    for where in (tmp_path, base):
        sample = load_sample(where, image_shape=(3, 8, 8))
        assert sample.labels.tolist() == [label for _, label in oracle] == [16, 1, 38]
        assert (sample.images[:, 0, 0, 0] * 255).round().tolist() == [16, 1, 38]
        assert sample.names == ("0", "1", "2")
    assert load_sample(base, split="train").labels.tolist() == [0, 7]


def test_gtsrb_list_may_not_name_other_files(tmp_path: Path) -> None:
    base = write_gtsrb(tmp_path)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n../../../../x.ppm;1\n")
    with pytest.raises(DataError, match="outside"):
        load_sample(base)
    (base / "GT-final_test.csv").write_text("File;Class\na.ppm;1\n")
    with pytest.raises(DataError, match="ClassId"):
        load_sample(base)


# --- BackdoorBench -------------------------------------------------------------------------------


def test_backdoorbench_tree(tmp_path: Path) -> None:
    tree = tmp_path / "record" / "bd_test_dataset"
    for label, index in ((3, 17), (3, 2), (10, 400)):
        path = tree / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), index % 256, dtype=np.uint8)).save(path)
    for where in (tree, tree.parent):
        sample = load_poisoned_tree(where)
        found = dict(zip(sample.names, sample.labels.tolist(), strict=True))
        assert found == {"17": 3, "2": 3, "400": 10}
        with pytest.raises(DataError, match="paired"):
            load_sample(where)
    (tree / "notes").mkdir()
    (tree / "3" / "2.png").rename(tree / "notes" / "x.png")
    with pytest.raises(DataError, match=r"x\.png"):
        load_poisoned_tree(tree)
    with pytest.raises(DataError, match="record folder"):
        load_poisoned_tree(tmp_path)


# --- Tiny ImageNet -------------------------------------------------------------------------------


def write_tiny_imagenet(root: Path, demo_files: Path, *, listed: bool = True) -> Path:
    """Real photographs of two classes, in the places and under the names of the archive."""
    base = root / "tiny-imagenet-200"
    sample = np.load(demo_files / "clean.npz")
    wnids = {8: "n02769748", 0: "n01443537"}  # bags and shirts stand for a backpack and a goldfish
    rows = []
    for label, wnid in wnids.items():
        chosen = sample["images"][sample["labels"] == label][:3]
        train = base / "train" / wnid / "images"
        train.mkdir(parents=True)
        (base / "val" / "images").mkdir(parents=True, exist_ok=True)
        pictures = [
            Image.fromarray(image.squeeze()).convert("RGB").resize((64, 64)) for image in chosen
        ]
        for number, picture in enumerate(pictures[:2]):
            picture.save(train / f"{wnid}_{number}.JPEG", quality=95)
        name = f"val_{len(rows)}.JPEG"
        pictures[2].save(base / "val" / "images" / name, quality=95)
        rows.append(f"{name}\t{wnid}\t0\t0\t63\t63")
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t63\t63\n")
    (base / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (base / "test" / "images").mkdir(parents=True)
    pictures[0].save(base / "test" / "images" / "test_0.JPEG")
    if listed:  # the archive lists its classes in no order
        (base / "wnids.txt").write_text("n02769748\nn01443537\nn09999999\n")
    return base


@pytest.mark.parametrize("listed", [True, False])
def test_tiny_imagenet(tmp_path: Path, demo_files: Path, listed: bool) -> None:
    base = write_tiny_imagenet(tmp_path, demo_files, listed=listed)
    for where in (tmp_path, base):
        test, train = load_sample(where), load_sample(where, split="train")
        assert test.images.shape == (2, 3, 64, 64)
        assert test.labels.tolist() == [1, 0]
        assert test.names == ("val_0", "val_1")
        assert train.labels.tolist() == [0, 0, 1, 1]
        assert (train.class_names or ())[:2] == ("n01443537", "n02769748")
        assert train.class_names == test.class_names
    # The third bag is nearer to the other two than to the shirts: classes and images agree.
    bag, of_class_1, of_class_0 = test.images[0], train.images[2:], train.images[:2]
    assert (of_class_1 - bag).square().mean() < (of_class_0 - bag).square().mean()


def test_tiny_imagenet_that_is_damaged(tmp_path: Path, demo_files: Path) -> None:
    base = write_tiny_imagenet(tmp_path, demo_files)
    annotations = base / "val" / "val_annotations.txt"
    for text, complaint in (
        ("val_0.JPEG\tn00000000\n", "n00000000"),
        ("../../wnids.txt\tn01443537\n", "outside"),
        ("val_0.JPEG n01443537\n", "tabs"),
    ):
        annotations.write_text(text)
        with pytest.raises(DataError, match=complaint):
            load_sample(base)


# --- what is skipped, and what may not be followed -------------------------------------------


def notes_of(path: Path, **options: object) -> str:
    return "\n".join(load_sample(path, **options).notes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt", "val/images/val_0.JPEG"])
def test_tiny_imagenet_follows_no_link_out_of_its_folder(
    tmp_path: Path, demo_files: Path, name: str
) -> None:
    base = write_tiny_imagenet(tmp_path / "data", demo_files)
    secret = tmp_path / "secret.txt"
    secret.write_text("the first secret\nthe second secret\n")
    (base / name).unlink()
    (base / name).symlink_to(secret)
    with pytest.raises(DataError, match="leads out of") as caught:
        load_sample(base)
    assert "the first secret" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    ["val_0\0.JPEG\tn01443537", "val_0.JPEG\tn0144\u00003537", f"{'a' * 5000}.JPEG\tn01443537"],
)
def test_tiny_imagenet_with_names_that_are_none(tmp_path: Path, demo_files: Path, row: str) -> None:
    base = write_tiny_imagenet(tmp_path, demo_files)
    (base / "val" / "val_annotations.txt").write_text(f"{row}\nval_1.JPEG\tn02769748\n")
    with pytest.raises(DataError) as caught:
        load_sample(base)
    assert len(str(caught.value)) < 1500


def test_tiny_imagenet_says_how_its_classes_are_numbered(tmp_path: Path, demo_files: Path) -> None:
    base = write_tiny_imagenet(tmp_path, demo_files)
    said = notes_of(base)
    assert "sorted WordNet id" in said
    assert "class 0 would be n02769748" in said
    stray = base / "val" / "images" / "val_7.JPEG"
    stray.write_bytes((base / "val" / "images" / "val_0.JPEG").read_bytes())
    assert "skipped 1 images that val_annotations.txt does not list" in notes_of(base)
    with pytest.raises(DataError, match="the same order"):
        load_sample(base, classes=["n02769748", "n01443537", "n09999999"])


def test_gtsrb_follows_no_link_and_repeats_nothing(tmp_path: Path) -> None:
    base = write_gtsrb(tmp_path / "data")
    secret = tmp_path / "secret.csv"
    secret.write_text("Filename;ClassId\nthe secret;the other secret\n")
    (base / "GT-final_test.csv").unlink()
    (base / "GT-final_test.csv").symlink_to(secret)
    with pytest.raises(DataError, match="leads out of"):
        load_sample(base)
    (base / "GT-final_test.csv").unlink()
    (base / "GT-final_test.csv").write_text(secret.read_text())
    with pytest.raises(DataError, match="row 1 is none") as caught:
        load_sample(base)
    assert "other secret" not in str(caught.value)


@pytest.mark.parametrize("label", ["9" * 30, "9" * 5000, "-1", "1.5", ""])
def test_gtsrb_classes_that_are_no_index(tmp_path: Path, label: str) -> None:
    base = write_gtsrb(tmp_path)
    (base / "GT-final_test.csv").write_text(f"Filename;ClassId\n00000.ppm;{label}\n")
    with pytest.raises(DataError, match=r"GT-final_test\.csv"):
        load_sample(base)


def test_gtsrb_says_what_its_list_leaves_out(tmp_path: Path) -> None:
    base = write_gtsrb(tmp_path)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00002.ppm;38\n00001.ppm;1\n")
    said = notes_of(base, image_shape=(3, 8, 8))
    assert "row 0 is 00002.ppm" in said
    assert "skipped 1 images that GT-final_test.csv does not list" in said


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
def test_idx_follows_no_link_out_of_its_folder(tmp_path: Path, part: str) -> None:
    write_idx(tmp_path / "data", "t10k", zipped=False)
    path = tmp_path / "data" / f"t10k-{part}-ubyte"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leads out of"):
        load_sample(tmp_path / "data")


def test_a_folder_inside_that_is_a_link_out(tmp_path: Path) -> None:
    write_idx(tmp_path / "elsewhere", "t10k", zipped=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        load_sample(tmp_path / "data")


def test_idx_plain_and_gzipped_must_say_the_same(tmp_path: Path) -> None:
    """torchvision leaves the archive beside what it unpacked."""
    images, _ = write_idx(tmp_path, "t10k", zipped=False)
    plain = tmp_path / "t10k-images-idx3-ubyte"
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert len(load_sample(tmp_path)) == 6
    plain.write_bytes(idx_bytes(255 - images))
    with pytest.raises(DataError, match="different values"):
        load_sample(tmp_path)


def test_cifar_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol=2)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leads out of"):
        load_sample(tmp_path)


def test_class_names_given_for_cifar_must_have_its_order(tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol=2)
    own = load_sample(tmp_path).class_names
    assert own is not None
    assert load_sample(tmp_path, classes=own).notes == ()
    other = load_sample(tmp_path, classes=[f"class {k}" for k in range(10)])
    assert any("10 of 10 classes have other names" in note for note in other.notes)
    with pytest.raises(DataError, match="the same order"):
        load_sample(tmp_path, classes=[own[1], own[0], *own[2:]])
    with pytest.raises(DataError, match=r"9 classes .* 10"):
        load_sample(tmp_path, classes=own[:9])


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
STATE = b"(I1\n(I3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntRI00\n%stb"


@pytest.mark.parametrize(
    ("pickled", "complaint"),
    [
        (b"\x80\x05\x96" + struct.pack("<Q", 3_000_000_000) + b".", "CIFAR batch"),
        (b"\x80\x02\x8b" + struct.pack("<i", 4) + b"\0\0\0\1.", "LONG4"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "remembers more"),
        (b"}p999999999\n.", "remembers more"),
        (b"}S'data'\n" + ARRAY + STATE % b"I900000000\n" + b"s.", "values as bytes"),
        (b"}" + b"(" * 100_000 + b".", "CIFAR batch"),
        (b"I" + b"9" * 10_000 + b"\n.", "CIFAR batch"),
    ],
    ids=["bytearray", "long4", "memo", "text-memo", "number-for-bytes", "marks", "digits"],
)
def test_a_cifar_pickle_sets_no_memory_aside(
    tmp_path: Path, pickled: bytes, complaint: str
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickled)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=complaint):
        load_sample(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_cifar_batch_with_labels_for_other_images(tmp_path: Path) -> None:
    write_cifar10(tmp_path, protocol=2)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes())
    batch["labels"] = batch["labels"][:-1]
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="labels for"):
        load_sample(tmp_path)
