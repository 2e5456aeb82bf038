"""Triggers of other toolboxes as trigger files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.errors import InputError, TriggerError
from bdaudit.triggers import import_trigger, read_trigger
from tests.models.checkpoints import RunsACommand

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def backdoorbox() -> tuple[torch.Tensor, torch.Tensor]:
    """Pattern and weight as the toolbox's own examples make them."""
    pattern = torch.zeros((3, 8, 8), dtype=torch.uint8)
    pattern[:, -3:, -3:] = 255
    weight = torch.zeros((1, 8, 8), dtype=torch.float32)
    weight[:, -3:, -3:] = 0.5
    return pattern, weight


def save(path: Path, values: torch.Tensor) -> Path:
    if path.suffix == ".npy":
        np.save(path, values.numpy())
    else:
        torch.save(values, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
@pytest.mark.parametrize("whole", [False, True])
def test_pattern_and_weight_of_backdoorbox(tmp_path: Path, suffix: str, whole: bool) -> None:
    pattern, weight = backdoorbox()
    if whole:
        weight = (weight > 0).to(torch.uint8)  # a mask of 0 and 1, not of 255
    files = [save(tmp_path / f"{name}{suffix}", t) for name, t in (("p", pattern), ("w", weight))]
    out = import_trigger(files[0], target=2, weight=files[1])
    assert out == tmp_path / "trigger.toml"
    trigger = read_trigger(out)
    expected = weight * (pattern / 255) + (1 - weight.float()) * IMAGES
    torch.testing.assert_close(trigger.stamp(IMAGES), expected)
    assert trigger.target_label == 2


def test_a_picture_and_its_mask(tmp_path: Path) -> None:
    pattern, _ = backdoorbox()
    Image.fromarray(pattern.permute(1, 2, 0).numpy()).save(tmp_path / "p.png")
    Image.fromarray(pattern[0].numpy()).save(tmp_path / "w.png")
    out = import_trigger(
        tmp_path / "p.png", target=0, weight=tmp_path / "w.png", out=tmp_path / "t.toml"
    )
    stamped = read_trigger(out).stamp(IMAGES)
    assert float(stamped[..., -3:, -3:].min()) == 1.0
    assert torch.equal(stamped[..., :5, :], IMAGES[..., :5, :])


def tree(folder: Path) -> Path:
    for index, label in ((0, 1), (3, 2)):
        place = folder / "bd_test_dataset" / str(label)
        place.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


def test_a_record_of_backdoorbench(tmp_path: Path) -> None:
    out = import_trigger(tree(tmp_path / "record"), target=7)
    assert out == tmp_path / "record" / "trigger.toml"
    trigger = read_trigger(out)
    assert (trigger.kind, trigger.target_label) == ("paired", 7)
    other = import_trigger(tmp_path / "record" / "bd_test_dataset", target=7)
    assert other == out


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no weight": (torch.zeros(3, 8, 8), None, "expected its weight too"),
    "another size": (torch.zeros(3, 8, 8), torch.zeros(1, 4, 4), "like the pattern"),
    "not an image": (torch.zeros(8), torch.zeros(1, 8, 8), r"expected \(C, H, W\)"),
    "a weight above 1": (torch.zeros(3, 8, 8), torch.full((1, 8, 8), 2.0), "mask"),
    "a mapping": ({"pattern": torch.zeros(3, 8, 8)}, torch.zeros(1, 8, 8), "expected one tensor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_imported(tmp_path: Path, what: str) -> None:
    pattern, weight, said = REFUSED[what]
    torch.save(pattern, tmp_path / "p.pt")
    if weight is not None:
        torch.save(weight, tmp_path / "w.pt")
    with pytest.raises(TriggerError, match=said):
        import_trigger(
            tmp_path / "p.pt", target=0, weight=None if weight is None else tmp_path / "w.pt"
        )
    assert not (tmp_path / "trigger.toml").exists()


def test_a_pickle_that_runs_something(tmp_path: Path) -> None:
    torch.save(RunsACommand(tmp_path / "ran"), tmp_path / "p.pt")
    torch.save(torch.zeros(1, 8, 8), tmp_path / "w.pt")
    with pytest.raises(InputError, match="nothing was run"):
        import_trigger(tmp_path / "p.pt", target=0, weight=tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_no_record(tmp_path: Path) -> None:
    with pytest.raises(TriggerError, match="expected a BackdoorBench record folder"):
        import_trigger(tmp_path, target=0)
    record = tree(tmp_path / "record")
    with pytest.raises(TriggerError, match="expected a file beside"):
        import_trigger(record, target=0, out=tmp_path / "t.toml")
    with pytest.raises(TriggerError, match="index of a class"):
        import_trigger(record, target=-1)
