"""Data sets in their usual layouts, dealt into parts that share no image."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdaudit.errors import DataError
from bdaudit.zoo.manifest import DataTable
from bdaudit.zoo.parts import Parts, load_parts


@pytest.fixture(scope="module")
def real(demo_files: Path) -> tuple[np.ndarray, np.ndarray]:
    """A thousand real images, no two alike."""
    sample = np.load(demo_files / "clean.npz")
    return sample["images"].reshape(-1, 28, 28), sample["labels"]


def coloured(image: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(image).convert("RGB").resize((side, side))


def write_cifar10(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rows = [np.asarray(coloured(image, 32)).transpose(2, 0, 1).reshape(-1) for image in images]
    for number, part in enumerate(np.array_split(np.arange(300), 6)):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        batch = {"data": np.stack([rows[i] for i in part]), "labels": labels[part].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))


def write_gtsrb(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    base = root / "gtsrb"
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    rows = ["Filename;ClassId"]
    for number, (image, label) in enumerate(zip(images[:300], labels[:300], strict=True)):
        picture = coloured(image, 30 + number % 7)  # signs differ in size
        if number < 250:
            folder = base / "GTSRB" / "Training" / f"{label:05}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number}.ppm")
        else:
            picture.save(test / f"{number:05}.ppm")
            rows.append(f"{number:05}.ppm;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


def write_tiny_imagenet(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    base = root / "tiny-imagenet-200"
    (base / "val" / "images").mkdir(parents=True)
    rows = []
    for number, (image, label) in enumerate(zip(images[:300], labels[:300], strict=True)):
        wnid, picture = f"n{label:08}", coloured(image, 64)
        if number < 250:
            folder = base / "train" / wnid / "images"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{wnid}_{number}.JPEG", quality=95)
        else:
            picture.save(base / "val" / "images" / f"val_{number}.JPEG", quality=95)
            rows.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63")
    (base / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


def contents(parts: Parts) -> list[set[bytes]]:
    every = (parts.pool, parts.defense, parts.sample, parts.measure)
    return [{image.numpy().tobytes() for image in part.pixels} for part in every]


def table(path: Path, shape: tuple[int, int, int] | None = None, **more: int) -> DataTable:
    sizes = {"pool": 120, "defense": 60, "sample": 20, "measure": 25} | more
    return DataTable(path=str(path), image_shape=shape, **sizes)


@pytest.mark.parametrize(
    ("write", "shape"),
    [
        (write_cifar10, (3, 32, 32)),
        (write_gtsrb, (3, 24, 24)),
        (write_tiny_imagenet, (3, 64, 64)),
    ],
)
def test_usual_layouts(
    tmp_path: Path,
    real: tuple[np.ndarray, np.ndarray],
    write: Callable[[Path, np.ndarray, np.ndarray], None],
    shape: tuple[int, int, int],
) -> None:
    write(tmp_path, *real)
    parts = load_parts(table(tmp_path, shape), seed=1)
    assert parts.image_shape == shape
    assert parts.num_classes == 10
    assert [len(p) for p in (parts.pool, parts.defense, parts.sample, parts.measure)] == [
        *(120, 60, 20, 25)
    ]
    every = contents(parts)
    assert len(set.union(*every)) == sum(map(len, every)) == 225
    again = load_parts(table(tmp_path, shape), seed=1)
    assert again.measure.sha256 == parts.measure.sha256
    assert load_parts(table(tmp_path, shape), seed=2).pool.sha256 != parts.pool.sha256


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, real: tuple[np.ndarray, np.ndarray]) -> Path:
    images, labels = real
    path = tmp_path_factory.mktemp("parts") / "images.npz"
    np.savez(
        path,
        images_train=images[:300],
        labels_train=labels[:300],
        # Twenty of the training images come again.
        images_test=np.concatenate([images[:20], images[300:400]]),
        labels_test=np.concatenate([labels[:20], labels[300:400]]),
    )
    return path


def test_copies_are_left_out(file: Path, real: tuple[np.ndarray, np.ndarray]) -> None:
    parts = load_parts(table(file, sample=50, measure=50), seed=0)
    repeated = {image.tobytes() for image in real[0][:20]}
    assert not (contents(parts)[2] | contents(parts)[3]) & repeated
    with pytest.raises(DataError, match=r"100 images are too few for 51 .* 50 .* \(20 more are"):
        load_parts(table(file, sample=51, measure=50), seed=0)


def test_one_folder_twice_is_refused(file: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train and data\.test"):
        load_parts(
            DataTable(train=str(file), test=str(file), pool=250, defense=50, sample=101), seed=0
        )


def test_a_later_part_does_not_change_an_earlier_one(file: Path) -> None:
    before = load_parts(table(file), seed=0)
    after = load_parts(table(file, defense=90, measure=40), seed=0)
    assert after.pool.sha256 == before.pool.sha256
    assert after.sample.sha256 == before.sample.sha256
    assert after.defense.sha256 != before.defense.sha256
    longer = load_parts(table(file, pool=150), seed=0)
    assert longer.sample.sha256 == before.sample.sha256


def test_every_class_keeps_its_share(file: Path) -> None:
    parts = load_parts(table(file), seed=0)
    shares = np.bincount(parts.pool.labels.numpy(), minlength=10) / 120
    with np.load(file) as arrays:
        whole = np.bincount(arrays["labels_train"], minlength=10) / 300
    assert np.abs(shares - whole).max() < 1 / 120 + 1e-9


def test_the_two_parts_must_have_the_same_classes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def write(name: str, classes: str, n: int) -> Path:
        for letter in classes:
            folder = tmp_path / name / letter
            folder.mkdir(parents=True)
            for index in range(n):
                pixels = generator.integers(0, 256, (4, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    def tried(train: Path, test: Path) -> Parts:
        sizes = {"pool": 30, "defense": 20, "sample": 20, "measure": 20}
        return load_parts(DataTable(train=str(train), test=str(test), **sizes), seed=0)

    whole, other = write("whole", "abc", 20), write("other", "abc", 20)
    assert tried(whole, other).num_classes == 3
    with pytest.raises(DataError, match=r"has 3 classes.*has 2"):
        tried(whole, write("lacking", "ac", 20))
    empty = write("empty", "ac", 20)
    (empty / "b").mkdir()
    with pytest.raises(DataError, match=r"empty has no images of b \(class 1\)"):
        tried(whole, empty)
    with pytest.raises(DataError, match=r"class 2 is 'c' by"):
        tried(whole, write("shuffled", "acz", 20))
