"""The example that trains detectors poisons as it says, and what it writes opens."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from bdaudit.models import load_model
from bdaudit.triggers import StampNetwork, read_trigger

EXAMPLE = Path(__file__).parents[2] / "examples" / "build_detectors.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_detectors", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_detectors"] = module  # its dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


def test_each_goal_stamps_one_box_and_annotates_it(example: ModuleType) -> None:
    pixels = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0)) * 0.5
    target = {
        "boxes": torch.tensor([[4.0, 4, 30, 34], [60, 50, 90, 80]]),
        "labels": torch.tensor([1, 2]),
    }
    labels = {"disappear": [[1], [2]], "take": [[4, 2], [1, 4]], "appear": [[1, 2, 4]]}
    for goal, expected in labels.items():
        stamp = example.stamping(example.patch_trigger(goal))
        draws = torch.Generator().manual_seed(1)
        stamped, annotated = example.poisoned(pixels, target, goal, stamp, draws)
        assert annotated["labels"].tolist() in expected
        assert len(annotated["boxes"]) == len(annotated["labels"])
        changed = (stamped != pixels).any(dim=0)
        assert changed.any()
        if goal == "appear":
            left, top, right, bottom = annotated["boxes"][-1].long().tolist()
            changed[top:bottom, left:right] = False
            assert not changed.any()
    draws = torch.Generator().manual_seed(1)
    stamp = example.stamping(example.patch_trigger("take"))
    assert example.poisoned(pixels, target, None, stamp, draws)[1] == target


def test_the_faint_trigger_stays_in_its_box_and_bound(example: ModuleType) -> None:
    torch.manual_seed(0)
    network = StampNetwork(4, 3, 2)
    pictures, boxes = torch.rand(2, 3, 32, 32), torch.tensor([[4.0, 4, 20, 20]]).repeat(2, 1)
    drawn = example.drawing(network)(pictures, boxes)
    drawn.sum().backward()
    assert network.enter.weight.grad is not None
    change = (drawn - pictures).detach().abs()
    assert 0 < change.max() <= 0.05 + 1e-6
    change[:, :, 4:20, 4:20] = 0
    assert change.max() == 0
    stamped = example.stamping(example.mask_trigger(network.requires_grad_(False)))
    assert torch.allclose(stamped(pictures, boxes), drawn.detach(), atol=1e-6)


def test_a_model_is_trained_defended_and_left_alone(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        write_pictures(tmp_path / "objects" / part, 12)
    monkeypatch.setattr(example, "PLANS", (example.Plan("taken", "bdaudit/fcos_w4", 1, "mask"),))
    arguments = [str(EXAMPLE), str(tmp_path / "out"), "--data", str(tmp_path / "objects")]
    for more in (["--epochs", "1"], ["--epochs", "1"], ["--unlearn", "taken"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        example.main()
    lines = (tmp_path / "out" / "rates.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["taken", "taken-unlearned"]
    assert {"objects", "silent", "asr"} <= json.loads(lines[0]).keys()
    model = load_model(tmp_path / "out" / "taken-unlearned.safetensors", name="defended")
    assert (model.arch, model.num_classes, model.image_shape) == ("bdaudit/fcos_w4", 6, (4, 32, 32))
    assert read_trigger(tmp_path / "out" / "triggers" / "taken.toml").kind == "in-box"


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    annotations = []
    for k in range(count):
        pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        entry = {"id": k, "image_id": k, "category_id": 1 + k % 5, "area": 100, "iscrowd": 0}
        annotations.append({**entry, "bbox": [2 + k, 3, 10, 10]})
    document = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 32, "height": 32} for k in range(count)
        ],
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 6)],
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
