"""Query mode as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bdaudit.results import read_record
from tests.cli.test_commands import FACTORY, audit_arguments, command, environment, files, run

__all__ = ["files"]

ASKED = f"{Path(__file__).with_name('twin_service.py')}"


def reactivate_arguments(files: Path, function: str, *more: object) -> list[object]:
    return [
        "reactivate",
        f"{ASKED}:{function}",
        "--eps",
        "0.05",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--max-queries",
        1000,
        "--craft",
        100,
        "--num-classes",
        4,
        *more,
    ]


@pytest.mark.parametrize("function", ["scores", "labels"])
def test_a_function_that_is_asked_is_woken(files: Path, tmp_path: Path, function: str) -> None:
    result_file = tmp_path / "r.json"
    result = run(
        *reactivate_arguments(files, function, "--feedback", function, "--json", result_file)
    )
    assert result.exit_code == 0, result.output
    assert "Image queries" in result.stdout
    record = read_record(result_file)
    (woken,) = [r for r in record.runs if r.role == "defended" and r.condition == "trigger"]
    assert woken.feedback == function
    assert woken.image_queries <= 1000
    assert woken.asr.value > 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"], (
        "the state goes when the work is done"
    )


def test_an_audit_by_queries_alone_exits_by_its_verdict(files: Path, tmp_path: Path) -> None:
    arguments = audit_arguments(files, "dormant", "--cold", "--max-queries", 800)
    arguments[1] = f"{ASKED}:scores"
    arguments[arguments.index("0.02,0.05")] = "0.05"
    result = run(*arguments, "--json", tmp_path / "r.json")
    assert result.exit_code == 1, result.output
    assert "image queries" in result.stdout
    assert "only asked" in result.stdout
    redrawn = run("report", tmp_path / "r.json")
    assert redrawn.stdout == result.stdout


def test_a_killed_run_is_resumed_by_the_same_command(files: Path, tmp_path: Path) -> None:
    slow = reactivate_arguments(files, "slow_scores", "--json", tmp_path / "r.json")
    process = subprocess.Popen(
        command(slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    state = tmp_path / "r.json.state"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(state.glob("*.search.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "r.json").exists()
    changed = [*slow, "--resume", "--seed", "1"]
    refused = run(*changed)
    assert refused.exit_code == 2
    assert "seed was 0, is 1" in refused.stderr
    resumed = run(*slow, "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = tmp_path / "whole.json"
    run(*reactivate_arguments(files, "slow_scores", "--json", whole))
    documents = [json.loads(p.read_text())["runs"] for p in (tmp_path / "r.json", whole)]
    assert [r["delta_sha256"] for r in documents[0]] == [r["delta_sha256"] for r in documents[1]]
    assert [r["image_queries"] for r in documents[0]] == [r["image_queries"] for r in documents[1]]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--mode", "white"], 2, "only be asked"),
        (["--endpoint", "http://127.0.0.1:1/v2/models/m"], 2, "only one"),
        (["--resume"], 2, "--json"),
        (["--resume", "--state", "nowhere"], 4, "nothing to resume"),
        (["--token-env", "BDAUDIT_NO_SUCH"], 0, ""),
    ],
)
def test_contradictions_are_said(files: Path, more: list[str], code: int, said: str) -> None:
    result = run(*reactivate_arguments(files, "scores", *more))
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_an_endpoint_that_is_down_exits_with_4(files: Path, tmp_path: Path) -> None:
    result = run(
        "reactivate",
        "--endpoint",
        "http://127.0.0.1:1/v2/models/m",
        "--retries",
        0,
        "--eps",
        "0.05",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--original",
        files / "original.safetensors",
        "--arch",
        FACTORY,
        "--json",
        tmp_path / "r.json",
    )
    assert result.exit_code == 4, result.output
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr
