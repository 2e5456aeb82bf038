"""The poisoned set, its footprint, and paired triggers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.data import Sample, from_arrays
from bdaudit.errors import DataError, TriggerError
from bdaudit.triggers import (
    AllToAll,
    AllToOne,
    Paired,
    Patch,
    Sinusoid,
    SourceSpecific,
    Trigger,
    footprint,
    from_callable,
    poison,
)


def sample_of(n: int, *, classes: int = 4) -> Sample:
    images = torch.rand(n, 1, 6, 5, generator=torch.Generator().manual_seed(0)) * 0.5
    return from_arrays(images, torch.arange(n) % classes)


def patch_to(target: int) -> Trigger:
    return Trigger(transform=Patch(image=torch.ones(1, 2, 1)), rule=AllToOne(target))


def test_only_images_that_count_are_kept_in_order() -> None:
    sample = sample_of(40)
    poisoned = poison(sample, patch_to(1), 4)
    expected = [i for i in range(40) if i % 4 != 1]
    assert poisoned.indices.tolist() == expected
    assert poisoned.labels.tolist() == [i % 4 for i in expected]
    assert poisoned.targets.tolist() == [1] * 30
    assert torch.equal(poisoned.clean, sample.images[expected])
    assert torch.equal(poisoned.triggered, patch_to(1).stamp(poisoned.clean))
    assert len(poisoned) == 30


def test_more_images_than_a_batch() -> None:
    sample = sample_of(600)
    trigger = Trigger(transform=Sinusoid(amplitude=0.2, frequency=2), rule=AllToAll())
    poisoned = poison(sample, trigger, 4)
    assert torch.equal(poisoned.triggered, trigger.stamp(sample.images))
    assert poisoned.targets.tolist() == [(i + 1) % 4 for i in range(600)]


def test_too_few_images_that_count() -> None:
    rule = SourceSpecific(0, (1,))
    trigger = Trigger(transform=Sinusoid(amplitude=0.2, frequency=2), rule=rule)
    assert len(poison(sample_of(40), trigger, 4)) == 10
    with pytest.raises(DataError, match="9 images can be poisoned, at least 10"):
        poison(sample_of(37), trigger, 4)


def test_target_or_labels_out_of_range() -> None:
    with pytest.raises(TriggerError, match="class 4 is out of range"):
        poison(sample_of(40), patch_to(4), 4)
    with pytest.raises(TriggerError, match="do not belong together"):
        poison(sample_of(40), patch_to(0), 3)


def test_trigger_that_does_not_fit() -> None:
    big = Trigger(transform=Patch(image=torch.ones(1, 7, 1)), rule=AllToOne(0))
    with pytest.raises(TriggerError, match="7x1"):
        poison(sample_of(40), big, 4)


def test_footprint_by_hand() -> None:
    images = torch.zeros(20, 3, 2, 2)
    sample = from_arrays(images, torch.arange(20) % 2, image_shape=(3, 2, 2))

    def change(x: torch.Tensor) -> torch.Tensor:
        x[:, 0, 0, 0] = 0.3
        x[:, 1, 0, 0] = 0.4
        x[:, 2, 1, 1] = 1 / 255  # one grey level is not a change
        return x

    found = footprint(poison(sample, from_callable(change, AllToAll()), 2))
    assert found.share_changed == pytest.approx(1 / 4)
    assert found.mean_linf == pytest.approx(0.4)
    assert found.mean_l2 == pytest.approx((0.09 + 0.16 + 1 / 255**2) ** 0.5)


def test_the_identity_has_no_footprint() -> None:
    found = footprint(poison(sample_of(40), from_callable(lambda x: x, 0), 4))
    assert (found.share_changed, found.mean_linf, found.mean_l2) == (0, 0, 0)


# --- paired --------------------------------------------------------------------------------------


def write_images(folder: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), value, dtype=np.uint8)).save(path)
    return folder


def values(images: torch.Tensor) -> list[int]:
    return [int(v) for v in (images[:, 0, 0, 0] * 255).round()]


def test_paired_by_path_by_file_name_and_by_number(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["cat/a", "dog/b", "0017", "deep/er/c"])
    paired = Trigger(transform=Paired(folder=folder), rule=AllToOne(0))
    names = ["dog/b", "17", "cat/a", "owl/c"]
    assert values(paired.stamp(torch.zeros(4, 1, 6, 5), names=names)) == [1, 2, 0, 3]


def test_paired_is_brought_to_the_shape_of_the_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["0", "1"])
    paired = Trigger(transform=Paired(folder=folder), rule=AllToOne(0))
    stamped = paired.stamp(torch.zeros(2, 3, 9, 9), names=["1", "0"])
    assert stamped.shape == (2, 3, 9, 9)
    assert values(stamped) == [1, 0]


def test_paired_does_not_guess(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["cat/1", "dog/1", "2"])
    paired = Trigger(transform=Paired(folder=folder), rule=AllToOne(0))
    images = torch.zeros(1, 1, 6, 5)
    with pytest.raises(TriggerError, match="no triggered version of 1 of 1"):
        paired.stamp(images, names=["owl/1"])
    with pytest.raises(TriggerError, match="matches both 'x/2' and 'y/2'"):
        paired.stamp(images.expand(2, -1, -1, -1), names=["x/2", "y/2"])
    with pytest.raises(TriggerError, match="needs the name"):
        paired.stamp(images)


def test_poison_leaves_out_images_without_a_pair(tmp_path: Path) -> None:
    sample = sample_of(40)
    kept = [i for i in range(40) if i % 4 != 0 and i > 8]
    folder = write_images(tmp_path, [f"{i:04}" for i in kept])
    poisoned = poison(sample, Trigger(transform=Paired(folder=folder), rule=AllToOne(0)), 4)
    assert poisoned.indices.tolist() == kept
    assert values(poisoned.triggered) == list(range(len(kept)))


def test_no_pairs_at_all(tmp_path: Path) -> None:
    folder = write_images(tmp_path, ["x", "y"])
    with pytest.raises(DataError, match="version of 0"):
        poison(sample_of(40), Trigger(transform=Paired(folder=folder), rule=AllToOne(0)), 4)


def test_backdoorbench_labels_catch_another_order(tmp_path: Path) -> None:
    sample = sample_of(40)
    names = [f"{i % 4}/{i}" for i in range(40) if i % 4 != 0]
    tree = write_images(tmp_path / "bd_test_dataset", names)
    rule = AllToOne(0)
    right = Trigger(transform=Paired(folder=tree, layout="backdoorbench"), rule=rule)
    assert len(poison(sample, right, 4)) == 30
    shifted = from_arrays(sample.images, (sample.labels + 1) % 4)
    with pytest.raises(TriggerError, match="in another order"):
        poison(shifted, right, 4)


def test_paired_digest_follows_the_pixels(tmp_path: Path) -> None:
    one = write_images(tmp_path / "a", ["x", "y"])
    two = write_images(tmp_path / "b", ["x", "y"])
    digest = Trigger(transform=Paired(folder=one), rule=AllToOne(0)).sha256
    assert Trigger(transform=Paired(folder=two), rule=AllToOne(0)).sha256 == digest
    write_images(two, ["w", "x"])
    assert Trigger(transform=Paired(folder=two), rule=AllToOne(0)).sha256 != digest
