"""What a run says on stderr while it works: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from bdaudit.cli import watching
from bdaudit.cli.watching import PlainLines, showing_progress
from bdaudit.foundation.minutes import in_minutes
from bdaudit.foundation.progress import Progress
from bdaudit.foundation.remaining import Remaining
from tests.cli.test_commands import audit_arguments, files, run

__all__ = ["files"]

LONG = "re-activation of reference 3, no trigger, eps 0.02, as long as a name can well become"


def watched(events: list[Progress], every_s: float) -> list[float | None]:
    """Return what is said to be left after each event."""
    remaining, said = Remaining(), []
    for number, event in enumerate(events):
        remaining.hear(event, number * every_s)
        said.append(remaining.seconds(number * every_s))
    return said


def test_a_reckoning_that_is_off_is_put_right_by_what_was_seen() -> None:
    """Each second reckoned takes three."""
    events = [Progress("work", done, 100.0, in_seconds=True) for done in range(61)]
    said = watched(events, every_s=3.0)
    assert said[0] == 100.0
    assert said[-1] == pytest.approx(40 * 3, rel=0.2)


def test_what_was_found_and_not_done_does_not_count_as_fast_work() -> None:
    """Stand-ins from a cache: 300 of 400 seconds go by at once."""
    events = [
        Progress("stand-ins", 0.0, 400.0, in_seconds=True),
        Progress("stand-ins", 300.0, 400.0, in_seconds=True),
        *(Progress("attack", 300.0 + done, 400.0, in_seconds=True) for done in range(1, 51)),
    ]
    said = watched(events, every_s=1.0)
    assert said[1] == pytest.approx(100.0, rel=0.1)
    assert said[-1] == pytest.approx(50.0, rel=0.2)


def test_without_a_reckoning_nothing_is_guessed_at_first() -> None:
    events = [Progress("sweep", done, 100.0) for done in range(51)]
    said = watched(events, every_s=2.0)
    assert said[:3] == [None, None, None]
    assert said[-1] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (42, "40 s"), (58, "1 min"), (600, "10 min"), (3600, "1 h"), (7800, "2 h 10 min")],
)
def test_times_are_said_as_a_person_would(seconds: float, words: str) -> None:
    assert in_minutes(seconds) == words


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_shows_the_time_left_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(watching, "stderr_console", lambda: console)
    monkeypatch.setattr(watching, "_SHOW_AFTER_S", -1.0)
    with showing_progress(False) as listener:
        listener(Progress(LONG, 3000.0, 10500.0, "97% of craft images", in_seconds=True))
        time.sleep(0.3)
    frames = [
        re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", f).strip() for f in shown.getvalue().split("\r")
    ]
    frame = next(f for f in frames if "left" in f)
    assert max(map(len, frame.splitlines())) <= width
    assert "2 h 5 min left" in frame
    assert "29%" in frame
    assert ("━" in frame) == (width >= 72)
    assert frame.startswith("re-activation of reference 3")


def test_a_log_gets_a_line_a_phase_and_a_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainLines(still_at_s=1.2).running() as listener:
        listener(Progress("too fast, to be told", 0, 10))
        listener(Progress("slow, first", 1, 10, in_seconds=True))
        assert capsys.readouterr().err == ""
        time.sleep(5.2)  # no event: a thread tells
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("bdaudit:  10% slow, first, ") for line in lines)


def test_an_audit_off_a_terminal_says_what_it_does_and_what_it_wrote(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_SHOW_AFTER_S", -1.0)
    written = [tmp_path / "r.json", tmp_path / "r.html"]
    outputs = ["--json", written[0], "--report", f"html={written[1]}"]
    result = run(*audit_arguments(files, "dormant", *outputs))
    assert result.exit_code == 1
    assert re.search(
        r"^bdaudit: +\d+% white box on defended, \d+ attacks at once: ", result.stderr, re.M
    )
    for path in written:
        assert f"bdaudit: wrote {path}\n" in result.stderr
        path.unlink()
    quiet = run(*audit_arguments(files, "dormant", *outputs, "--quiet"))
    assert quiet.stderr == ""
    assert all(path.exists() for path in written)


@pytest.mark.parametrize("name", ["sarif", "junit", "env"])
def test_a_report_that_cannot_be_is_refused_before_any_work(
    files: Path, tmp_path: Path, name: str
) -> None:
    refused = run(
        "relearn",
        files / "no such model.safetensors",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--report",
        f"{name}={tmp_path / 'r'}",
    )
    assert refused.exit_code == 2, refused.output
    assert f"a {name} report is made of an audit" in refused.stderr
    assert "possible: html, md, csv, json" in refused.stderr
