"""`bdaudit bench` as a user calls it, on a family of two demonstration models."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.records.benchmark import read_benchmark
from bdaudit.records.families import Family, FamilyMember, FamilyTrigger, write_family
from bdaudit.verdict import read_policy


@pytest.fixture(scope="module")
def family(demo_files: Path) -> Path:
    held = {"original": "original", "trigger": "patch", "attack": "badnets", "lineage": "defended"}
    common = {"sha256": "0", "weights_sha256": "0"}

    def member(name: str, **fields: object) -> FamilyMember:
        return FamilyMember.model_validate(
            {"name": name, "file": f"{name}.safetensors", **common, **fields}
        )

    write_family(
        demo_files,
        Family(
            name="demo",
            dataset="fashion-mnist",
            num_classes=10,
            image_shape=(1, 28, 28),
            sample="clean.npz",
            references=("innocent-2",),
            triggers={"patch": FamilyTrigger(file="trigger.toml", sha256="1", attack="badnets")},
            members=(
                member("original", lineage="original", trigger="patch", truth="active"),
                member("removed", truth="removed", **held),
                member("innocent-2", lineage="clean", truth="innocent"),
            ),
        ),
    )
    return demo_files


QUICK = ["--eps", "0.02", "--passes", "2", "--craft", "100", "--held-out", "250"]


def test_a_family_is_audited_and_reported(family: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = CliRunner().invoke(app, ["bench", str(family), "--out", str(out), *QUICK])

    made = read_benchmark(out / "benchmark.json")
    assert [case.member for case in made.cases] == ["removed"]
    assert result.exit_code == (1 if made.misses else 0)
    assert "Verdict against truth, white box" in result.stdout
    assert '<h2 id="verdicts">' in (out / "benchmark.html").read_text()
    assert not (out / "policy.toml").exists()
    assert str(tmp_path) not in made.cases[0].record


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variants", "grey"], 2, "--variants: expected some of white"),
        (["--only", "nothing-*"], 2, "no model is called nothing-*"),
        (["--policy", "missing.toml"], 4, "missing.toml"),
    ],
)
def test_what_cannot_be_done_is_said(
    family: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    command = ["bench", str(family), "--out", str(tmp_path / "out"), *QUICK, *arguments]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == code
    assert message in result.output


def test_another_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path), "--out", str(tmp_path / "out")])

    assert result.exit_code == 4
    assert "expected a family of models" in result.output


def test_a_calibrated_policy_can_be_read_back(tmp_path: Path) -> None:
    from bdaudit.cli.bench import policy_text

    path = tmp_path / "policy.toml"
    path.write_text(policy_text({"lift": 0.12, "saturation": 0.5, "confidence": 0.95}))

    assert read_policy(path).lift == 0.12
