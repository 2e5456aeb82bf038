"""A mode of attack is one file and one line in each table: a fourth takes part in everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from bdaudit.foundation.modes import MODES, Mode
from bdaudit.foundation.texts import read_json
from bdaudit.measuring.attacking import KINDS
from bdaudit.records.benchmark import VARIANTS


def test_every_mode_has_words_a_kind_and_a_variant() -> None:
    assert tuple(MODES) == tuple(KINDS) == get_args(Mode)
    assert [words.mode for words in VARIANTS.values()][: len(MODES)] == list(MODES)


def test_kinds_are_told_by_their_settings() -> None:
    assert len({kind.config for kind in KINDS.values()}) == len(KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fourth mode")
    # By itself, since the modes are read when the package is imported.
    command = [sys.executable, "-m", "tests.auditing.fourth_mode", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return made


def record_of(folder: Path, name: str) -> Any:
    return read_json(folder / f"{name}.json", what="a record")


@pytest.mark.parametrize("outcome", ["dormant", "removed"])
def test_a_fourth_mode_gives_verdicts(folder: Path, outcome: str) -> None:
    record = record_of(folder, outcome)
    assert record["verdict"]["outcome"] == outcome, record["verdict"]
    assert {run["mode"] for run in record["runs"]} == {"brightness"}
    roles = {run["role"] for run in record["runs"] if run["condition"] == "trigger"}
    assert roles == {"defended", "original", "reference"}
    assert record["settings"]["modes"] == ["brightness"]


def test_a_fourth_mode_is_spoken_of_in_its_words(folder: Path) -> None:
    why = record_of(folder, "dormant")["verdict"]["why"]
    (run,) = [
        run
        for run in record_of(folder, "dormant")["runs"]
        if (run["role"], run["condition"]) == ("defended", "trigger")
    ]
    assert f", the better of two after {run['image_queries']:,} questions, takes 100%" in why
    for kind in ("md", "html"):
        text = (folder / f"dormant.{kind}").read_text(encoding="utf-8")
        assert "brighter or darker" in text
        # It asks, so a report says that nobody looked inside, and what was asked.
        assert "the model was a black-box model to this audit" in text
    assert "could only be queried" in record_of(folder, "removed")["verdict"]["why"]


def test_a_fourth_mode_is_a_setting_and_a_single_attack(folder: Path) -> None:
    assert (folder / "asked_for.txt").read_text(encoding="utf-8").strip() == "brightness"
    record = record_of(folder, "single")
    assert {run["mode"] for run in record["runs"]} == {"brightness"}
    (run,) = [r for r in record["runs"] if (r["role"], r["condition"]) == ("defended", "trigger")]
    assert run["asr"]["successes"] == run["asr"]["total"]
