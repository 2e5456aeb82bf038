from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.models import load_model
from bdaudit.records.defenses import read_defenses
from tests.cli.twin_files import write_twin_files

FACTORY = f"{Path(__file__).with_name('twin_factory.py')}:twin"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin_files(tmp_path_factory.mktemp("files"))


def defend(files: Path, out: Path, *more: object) -> Result:
    arguments = [
        "defend",
        files / "original.safetensors",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--reference",
        files / "innocent.safetensors",
        "--arch",
        FACTORY,
        "--out",
        out,
        "--stand-ins",
        0,
        "--defender-images",
        60,
        "--craft",
        60,
        "--eps",
        "0.02",
        "--passes",
        4,
        "--no-bec",
        *more,
    ]
    return CliRunner().invoke(app, [str(a) for a in arguments])


GENTLE = ("--set", "finetune.tuning.learning_rate=1e-7", "--set", "fst.tuning.n_epochs=1")


def test_gentle_defences_remove_nothing_and_the_exit_code_says_so(
    files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--methods", "finetune,fst", *GENTLE)
    result = defend(files, out, *arguments, "--workers", 2)
    record = read_defenses(out / "defend.json")
    fine_tuned = next(row for row in record.tried if row.method == "finetune")
    assert fine_tuned.outcome == "active"
    assert fine_tuned.settings["tuning.learning_rate"] == 1e-7
    assert "active" in result.stdout
    assert result.exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[record.outcome]
    assert load_model(out / "finetune.safetensors", name="d", arch=FACTORY).num_classes == 4
    again = defend(files, out, *arguments, "--quiet")
    assert again.stdout == f"{record.outcome}: {record.why}\n"
    assert {row.kept for row in read_defenses(out / "defend.json").tried} == {"audit"}


def test_json_goes_to_stdout_alone(files: Path, tmp_path: Path) -> None:
    result = defend(files, tmp_path / "out", "--methods", "finetune", *GENTLE[:2], "--json", "-")
    assert json.loads(result.stdout)["kind"] == "defenses"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--methods", "anpp"), "unknown key 'anpp'"),
        (("--set", "finetune"), "--set: expected METHOD.SETTING=VALUE"),
        (("--methods", "finetune", "--set", "finetune.no=1"), "unknown key 'no'"),
        (("--set", "finetune.tuning.n_epochs=-1"), "n_epochs"),
        (("--set", "fst.alpha=1", "--set", "fst.alpha=2"), "fst.alpha is given twice"),
    ],
)
def test_unusable_settings_are_a_usage_error(
    files: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = defend(files, tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_project_file_says_what_is_tried(files: Path, tmp_path: Path) -> None:
    project = tmp_path / "bdaudit.toml"
    project.write_text(
        '[defend]\nmethods = ["finetune"]\nsettings = ["finetune.tuning.learning_rate=1e-7"]\n'
    )
    result = defend(files, tmp_path / "out", "--config", project, "--quiet")
    (row,) = read_defenses(tmp_path / "out" / "defend.json").tried
    assert row.method == "finetune"
    assert row.settings["tuning.learning_rate"] == 1e-7
    assert result.exit_code == 1
