from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bdaudit.auditing.drafting import draft_project
from bdaudit.errors import InputError
from bdaudit.project import read_project
from tests.cli.twin_files import TRIGGER


def found(folder: Path) -> dict[str, object]:
    return {finding.key: finding.value for finding in draft_project(folder).findings}


def put_model(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"conv1.weight": torch.zeros(2, 1, 3, 3)}, path)


def put_class_folders(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            Image.new("L", (8, 8), 40 * k).save(folder / name / f"{k}.png")


def put_trigger(folder: Path, name: str = "trigger.toml") -> None:
    (folder / name).write_text(TRIGGER)
    np.save(folder / "delta.npy", np.zeros((1, 8, 8), dtype=np.float32))


def test_a_plain_folder_is_understood(tmp_path: Path) -> None:
    for name in ("backdoored", "defended", "innocent-1", "clean_2"):
        put_model(tmp_path / f"{name}.safetensors")
    put_class_folders(tmp_path / "images")
    put_trigger(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    draft = draft_project(tmp_path)
    assert found(tmp_path) == {
        "inputs.defended": "defended.safetensors",
        "inputs.original": "backdoored.safetensors",
        "inputs.reference": ["clean_2.safetensors", "innocent-1.safetensors"],
        "inputs.data": "images",
        "inputs.classes": "classes.txt",
        "inputs.trigger": "trigger.toml",
    }
    assert draft.open_questions == ()


def test_benchmark_folders_are_understood(tmp_path: Path) -> None:
    record = tmp_path / "badnet_0_1"
    put_model(record / "attack_result.pt")
    put_model(record / "defense" / "ft-sam" / "defense_result.pt")
    assert found(tmp_path) == {
        "inputs.original": "badnet_0_1/attack_result.pt",
        "inputs.defended": "badnet_0_1/defense/ft-sam/defense_result.pt",
    }


def test_of_several_none_is_guessed_and_all_are_named(tmp_path: Path) -> None:
    for name in ("original", "defended_a", "defended_b"):
        put_model(tmp_path / f"{name}.pt")
    draft = draft_project(tmp_path)
    assert "inputs.defended" not in found(tmp_path)
    (question,) = [q for q in draft.open_questions if q.startswith("inputs.defended")]
    assert "defended_a.pt, defended_b.pt" in question
    assert "defended_a.pt" in draft.text


def test_a_checkpoint_left_over_is_the_candidate(tmp_path: Path) -> None:
    put_model(tmp_path / "original.pt")
    put_model(tmp_path / "model_v2.pt")
    assert found(tmp_path)["inputs.defended"] == "model_v2.pt"


def test_data_and_what_a_trigger_needs_are_no_models(tmp_path: Path) -> None:
    arrays = {"images": torch.rand(8, 1, 8, 8), "labels": torch.arange(8) % 2}
    save_file(arrays, tmp_path / "clean.safetensors")
    save_file({"delta": torch.zeros(1, 8, 8)}, tmp_path / "delta.safetensors")
    (tmp_path / "trigger.toml").write_text(TRIGGER.replace(".npy", ".safetensors"))
    assert found(tmp_path) == {
        "inputs.data": "clean.safetensors",
        "inputs.trigger": "trigger.toml",
    }


def test_a_test_set_is_preferred_to_a_training_set(tmp_path: Path) -> None:
    put_class_folders(tmp_path / "train")
    put_class_folders(tmp_path / "test")
    assert found(tmp_path)["inputs.data"] == "test"


def test_an_empty_folder_leaves_only_questions_and_a_valid_file(tmp_path: Path) -> None:
    draft = draft_project(tmp_path)
    assert draft.findings == ()
    assert len(draft.open_questions) == 5
    (tmp_path / "bdaudit.toml").write_text(draft.text)
    assert read_project(tmp_path / "bdaudit.toml").options().keys() == {"policy"}


def test_every_line_can_be_uncommented(tmp_path: Path) -> None:
    text = draft_project(tmp_path).text
    everything = re.sub(r"(?m)^# (?=[a-z_0-9]+ = )", "", text)
    (tmp_path / "bdaudit.toml").write_text(everything)
    assert len(read_project(tmp_path / "bdaudit.toml").options()) > 40


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        draft_project(tmp_path / "nowhere")
