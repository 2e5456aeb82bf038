"""A white-box audit that is killed goes on where it stopped, and ends in the same record."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bdaudit.measuring.store import FolderStore
from tests.cli.test_commands import audit_arguments, command, environment, files, run

__all__ = ["files"]

N_KILLS = 6
_TIMES = ("created", "elapsed_s", "peak_memory_bytes", "command")


def without_times(value: Any) -> Any:
    """Leave out of a record what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def read(path: Path) -> Any:
    # The digest over the document is over its times too.
    document = json.loads(path.read_text())
    return without_times({k: v for k, v in document.items() if "sha256" not in k})


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_record_as_it_would_have_been(
    files: Path, tmp_path: Path
) -> None:
    target, whole = tmp_path / "r.json", tmp_path / "whole.json"
    arguments = audit_arguments(files, "dormant", "--quiet")
    arguments[arguments.index("--passes") + 1] = 60
    assert run(*arguments, "--json", whole).exit_code == 1
    state = tmp_path / "r.json.state"
    draw = random.Random(0)

    def n_kept() -> int:
        return len(list(state.glob("*.delta.safetensors")))

    def start() -> subprocess.Popen[bytes]:
        resume = ["--resume"] if (state / "inputs.json").exists() else []
        return subprocess.Popen(
            command([*arguments, "--json", target, *resume]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    begun = time.monotonic()
    assert start().wait(timeout=300) == 1
    longest = time.monotonic() - begun
    n_kills, n_with_results = 0, 0
    while n_kills < N_KILLS:
        target.unlink(missing_ok=True)
        process = start()
        if n_kills % 2:  # at any moment; most of a small audit is spent on starting
            until, n_more = time.monotonic() + draw.uniform(0.0, 1.0) * longest, None
        else:  # once another result or more is kept
            until, n_more = time.monotonic() + longest, n_kept() + draw.randint(1, 3)
        while process.poll() is None and time.monotonic() < until:
            if n_more is not None and n_kept() >= n_more:
                break
            time.sleep(0.002)
        process.kill()
        if process.wait(timeout=60) == -signal.SIGKILL:
            n_kills += 1
            n_with_results += n_kept() > 0
        else:  # it was done before
            assert process.returncode == 1
            assert read(target) == read(whole)
    target.unlink(missing_ok=True)
    assert start().wait(timeout=300) == 1
    assert read(target) == read(whole)
    assert not state.exists()
    assert n_with_results, "no kill came while there was anything to go on with"


def test_what_a_kill_left_before_or_after_the_work_is_no_obstacle(
    files: Path, tmp_path: Path
) -> None:
    """A kill while the folder is begun, or while it is thrown away, leaves parts of it."""
    state = tmp_path / "r.json.state"
    state.mkdir()
    (state / ".inputs.json.x1").write_text("{")
    arguments = audit_arguments(files, "removed", "--json", tmp_path / "r.json", "--quiet")
    assert run(*arguments).exit_code == 0
    assert not state.exists()
    state.mkdir()
    (state / "somebody's.txt").write_text("not ours")
    refused = run(*arguments)
    assert refused.exit_code == 4
    assert "contains something else" in refused.stderr
    assert (state / "somebody's.txt").exists()


def test_the_marker_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path / "state", resume=False)
    store.describe({"model": "one"})
    (store.folder / "run.json").write_text("{}")
    removed = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    store.finish()
    assert removed == ["run.json", "inputs.json"]
    assert not store.folder.exists()


def test_results_that_are_about_to_be_replaced_are_named(files: Path, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "r.json.state", resume=False)
    store.describe({"model": "one"})
    (store.folder / "run.json").write_text("{}")
    arguments = audit_arguments(files, "removed", "--json", tmp_path / "r.json", "--quiet")
    refused = run(*arguments, "--resume")
    assert refused.exit_code == 2
    assert "cannot resume from" in refused.stderr
    again = run(*arguments)
    assert again.exit_code == 0
    assert "with --resume it would go on with them" in again.stderr
