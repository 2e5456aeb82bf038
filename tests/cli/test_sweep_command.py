"""`bdaudit sweep` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.cli.exits import exit_of_sweep
from bdaudit.records import AuditRecord, read_record
from bdaudit.records.sweeps import SweepRecord, SweptAudit
from tests.cli.twin_files import write_twin_files

FACTORY = Path(__file__).with_name("twin_factory.py")
MANIFEST = """
[defaults.inputs]
original = "original.safetensors"
data = "clean.npz"
trigger = "trigger.toml"
reference = ["innocent.safetensors"]
stand_ins = 0
[defaults.models]
arch = "twin_factory.py:twin"
[defaults.attack]
eps = [0.02, 0.05]
passes = 4
[defaults.compute]
craft = 100
device = "cpu"
[[audit]]
[audit.inputs]
defended = ["removed.safetensors", "{other}.safetensors"]
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copyfile(FACTORY, folder / "twin_factory.py")
    return write_twin_files(folder)


def manifest(files: Path, other: str = "dormant") -> Path:
    path = files / "sweep.toml"
    path.write_text(MANIFEST.format(other=other))
    return path


def sweep(files: Path, *more: object, other: str = "dormant") -> Result:
    return run(
        *("sweep", manifest(files, other), "--out", files / "out", "--no-cache"),
        *("--trust-manifest", *more),
    )


def test_a_sweep_shows_the_worst_first_and_keeps_what_it_has(files: Path) -> None:
    result = sweep(files)
    assert result.exit_code == 1, result.output
    assert result.stdout.index("dormant") < result.stdout.index("removed")
    assert "removed: removed (done)" in result.stderr
    written = json.loads((files / "out" / "sweep.json").read_text())
    assert [(a["key"], a["outcome"]) for a in written["audits"]] == [
        ("removed", "removed"),
        ("dormant", "dormant"),
    ]
    record = read_record(files / "out" / written["audits"][1]["record"])
    assert isinstance(record, AuditRecord)
    assert record.sources["original"] == str(files / "original.safetensors")

    again = sweep(files, "--json", "-")
    assert again.exit_code == 1
    assert {a["status"] for a in json.loads(again.stdout)["audits"]} == {"kept"}


def test_a_failed_audit_is_not_a_pass(files: Path) -> None:
    result = sweep(files, "--quiet", other="nothing")
    assert result.exit_code == 4
    assert result.stdout == "1 failed, 1 removed\n"
    shown = sweep(files, "--debug", other="nothing")
    assert "nothing.safetensors: expected a checkpoint: No such" in shown.stdout.replace("\n", "")
    assert "audit_steps" in shown.stderr


def test_one_audit_alone_asks_for_the_same(files: Path) -> None:
    """What a manifest says of an audit is read as `bdaudit audit` reads a project file."""
    sweep(files)
    text = MANIFEST.format(other="").split("[[audit]]")[0].replace("defaults.", "")
    text = text.replace("[inputs]", '[inputs]\ndefended = "dormant.safetensors"')
    (files / "bdaudit.toml").write_text(text)
    alone = files / "alone.json"
    run(
        *("audit", "--config", files / "bdaudit.toml", "--trust-config", "--quiet"),
        *("--no-cache", "--json", alone),
    )
    one, swept = (read_record(p) for p in (alone, files / "out" / "records" / "dormant.json"))
    assert isinstance(one, AuditRecord)
    assert isinstance(swept, AuditRecord)
    assert one.settings == swept.settings
    assert {**one.sources, "project": ""} == {**swept.sources, "project": ""}
    assert one.verdict == swept.verdict
    assert [r.delta_sha256 for r in one.runs] == [r.delta_sha256 for r in swept.runs]


def test_code_needs_trust_and_wrong_options_are_said(files: Path) -> None:
    untrusted = run("sweep", manifest(files), "--out", files / "out")
    assert untrusted.exit_code == 4
    assert "runs the Python file twin_factory.py" in untrusted.stderr
    assert not (files / "out").exists()
    assert sweep(files, "--gpus-per-task", 0.5).exit_code == 2
    assert run("sweep", files / "none.toml", "--out", files / "out").exit_code == 4


def audited(outcome: str | None, **more: Any) -> SweptAudit:
    status = "failed" if outcome is None else "done"
    return SweptAudit(key="k", status=status, outcome=outcome, why="", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("audits", "code"),
    [
        ([audited("removed", release="pass")], 0),
        ([audited("removed", release="pass"), audited("inconclusive")], 3),
        ([audited("inconclusive", release="pass")], 0),
        ([audited("removed", release="fail")], 1),
        ([audited("inconclusive"), audited(None, failed_of="input")], 4),
        ([audited(None, failed_of="input"), audited(None, failed_of="internal")], 70),
        ([audited(None, failed_of="internal"), audited("dormant")], 1),
    ],
)
def test_the_exit_code_is_the_worst(audits: list[SweptAudit], code: int) -> None:
    made = SweepRecord(created=datetime.now(UTC), bdaudit="0", audits=tuple(audits), elapsed_s=0.0)
    assert exit_of_sweep(made) == code


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished(files: Path) -> None:
    path = manifest(files)
    # The second takes long: it is to be interrupted, not to finish.
    path.write_text(
        path.read_text()
        + '[[audit]]\nname = "long"\n[audit.inputs]\ndefended = "original.safetensors"\n'
        + "stand_ins = 3\nstand_in_images = 1000000000\n"
    )
    command = ["sweep", path, "--out", files / "out", "--no-cache", "--trust-manifest"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bdaudit", *map(str, command), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A script in the background hands down an ignored SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300  # a hang is told from a busy machine
    records = files / "out" / "records"
    try:
        while len(list(records.glob("*.json"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:  # nothing is left behind that would never end
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert "run the same command again to continue" in err
    assert "Traceback" not in err
    assert {p.stem for p in records.iterdir()} == {"removed", "dormant"}


@pytest.mark.slow
def test_a_sweep_on_ray_gives_the_same(files: Path) -> None:
    pytest.importorskip("ray")
    on_ray = [sys.executable, "-m", "bdaudit", "sweep", str(manifest(files)), "--no-cache"]
    on_ray += ["--trust-manifest", "--engine", "ray", "--workers", "2", "--json", "-"]
    done = subprocess.run(
        [*on_ray, "--out", str(files / "ray")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert [a["status"] for a in json.loads(done.stdout)["audits"]] == ["done", "done"]
    sweep(files)
    for name in ("removed", "dormant"):
        one, other = (
            read_record(files / folder / "records" / f"{name}.json") for folder in ("ray", "out")
        )
        assert isinstance(one, AuditRecord)
        assert isinstance(other, AuditRecord)
        assert one.verdict == other.verdict
        assert [r.delta_sha256 for r in one.runs] == [r.delta_sha256 for r in other.runs]
