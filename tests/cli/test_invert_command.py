"""`bdaudit invert` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.models import save_model
from tests.inversion.nets import another_innocent
from tests.twins import original_twin, twin_sample

FACTORY = f"{Path(__file__).with_name('twin_factory.py')}:twin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inversion")
    nets = {"original": original_twin()} | {f"innocent-{k}": another_innocent(k) for k in range(4)}
    for name, net in nets.items():
        path = folder / f"{name}.safetensors"
        save_model(path, net, arch=None, num_classes=4, image_shape=(1, 8, 8))
    sample = twin_sample(400, seed=1)
    np.savez(folder / "clean.npz", images=sample.images.numpy(), labels=sample.labels.numpy())
    return folder


def run(files: Path, suspect: str, *more: object) -> Result:
    arguments: list[object] = ["invert", files / f"{suspect}.safetensors"]
    arguments += ["--data", files / "clean.npz", "--arch", FACTORY, "--craft", 100]
    for k in (1, 2, 3):
        arguments += ["--reference", files / f"innocent-{k}.safetensors"]
    return CliRunner().invoke(app, [str(a) for a in (*arguments, *more)], env={"COLUMNS": "100"})


def test_found_is_exit_1_and_leaves_a_trigger_file(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "trigger.toml"
    result = run(
        files, "original", "--out", out, "--json", tmp_path / "r.json", "--method", "neural-cleanse"
    )
    assert result.exit_code == 1, result.output
    assert "FOUND" in result.output
    assert "recovered, not known" in result.output
    assert "recovered = true" in out.read_text()
    assert out.with_suffix(".png").is_file()
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["inversion"]["candidates"][0]["target_label"] == 0


def test_none_is_exit_0_and_leaves_no_trigger_file(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "trigger.toml"
    result = run(files, "innocent-0", "--out", out, "--method", "universal")
    assert result.exit_code == 0, result.output
    assert "NONE FOUND" in result.output
    assert not out.exists()


def test_json_on_stdout_is_nothing_but_json(files: Path) -> None:
    result = run(files, "original", "--target", 0, "--method", "neural-cleanse", "--json", "-")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["kind"] == "inversion"


def test_a_target_that_is_no_class_is_a_usage_error(files: Path) -> None:
    assert run(files, "original", "--target", "4").exit_code == 2
    assert run(files, "original", "--target", "first").exit_code == 4


def test_an_audit_without_a_trigger_of_a_clean_original_ends_with_3(files: Path) -> None:
    arguments: list[object] = ["audit", files / "innocent-1.safetensors", "--arch", FACTORY]
    arguments += ["--original", files / "innocent-0.safetensors", "--data", files / "clean.npz"]
    arguments += ["--craft", 60, "--no-bec", "--stand-ins", 0]
    for k in (2, 3):
        arguments += ["--reference", files / f"innocent-{k}.safetensors"]
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})
    assert result.exit_code == 3, result.output
    text = " ".join(result.output.replace("│", " ").split())
    assert "no backdoor found to audit" in text
    assert "recovered from the original, not known" in text
