from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.records import AuditRecord, RelearnRecord, read_record
from tests.cli.twin_files import write_twin_files

FACTORY = f"{Path(__file__).with_name('twin_factory.py')}:twin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin_files(tmp_path_factory.mktemp("files"))


def run(command: str, files: Path, defended: str, *more: object) -> Result:
    arguments = [
        command,
        files / f"{defended}.safetensors",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--reference",
        files / "innocent.safetensors",
        "--arch",
        FACTORY,
        "--stand-ins",
        0,
        "--craft",
        100,
        *more,
    ]
    return CliRunner().invoke(app, [str(a) for a in arguments])


SHORT = ("--learning-rates", "0.0001,0.001", "--steps", "2,5", "--draws", 3, "--held-out", 80)


def test_it_shows_the_comparison_and_writes_the_record(files: Path, tmp_path: Path) -> None:
    written = tmp_path / "relearn.json"
    page = tmp_path / "relearn.html"
    result = run("relearn", files, "dormant", *SHORT, "--json", written, "--report", f"html={page}")
    assert result.exit_code == 0, result.output
    assert "REMEMBERED" in result.stdout
    assert "ASR by training steps" in result.stdout
    record = read_record(written)
    assert isinstance(record, RelearnRecord)
    assert record.relearning.evidence.steps == (2, 5)
    assert record.relearning.evidence.settings["learning_rates"] == [0.001]  # the largest served
    assert "How fast the trigger is relearned" in page.read_text(encoding="utf-8")


def test_quiet_is_one_line_and_json_goes_to_stdout(files: Path) -> None:
    quiet = run("relearn", files, "removed", *SHORT, "--quiet")
    assert quiet.exit_code == 0, quiet.output
    assert quiet.stdout.startswith("removed: ")
    assert quiet.stdout.count("\n") == 1
    document = json.loads(run("relearn", files, "removed", *SHORT, "--json", "-").stdout)
    assert document["kind"] == "relearning"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--steps", "2,x", "--steps: expected whole numbers"),
        ("--steps", "5,2", "steps: expected rising values"),
        ("--learning-rates", "0.1,0.01", "learning_rates: expected rising values"),
    ],
)
def test_unusable_settings_are_a_usage_error(
    files: Path, option: str, value: str, said: str
) -> None:
    result = run("relearn", files, "dormant", option, value)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_audit_takes_it_along(files: Path, tmp_path: Path) -> None:
    written = tmp_path / "audit.json"
    result = run(
        "audit", files, "dormant", "--original", files / "original.safetensors", "--relearn",
        "--no-bec", "--passes", 8, "--eps", "0.02,0.05", "--held-out", 80, "--json", written,
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert "Relearning: REMEMBERED" in result.stdout
    assert "ASR by training steps" not in result.stdout  # which is for the page
    record = read_record(written)
    assert isinstance(record, AuditRecord)
    assert record.relearning is not None
