"""What reaches a terminal, as bytes of real processes: no code of anybody else's, and no exit code
that could be read as a verdict where the output could not be written."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bdaudit.cli.exits import EXIT_OF_RELEASE, OUTCOMES, exit_of
from bdaudit.errors import ClosedOutputError, InputError, OutputError
from bdaudit.records import to_json
from bdaudit.verdict import Policy, judge
from tests.records import audit_record

ESCAPES = "\x1b]0;OWNED\x07\x1b[2J\x1b[1;31mred\x1b[8m"
UNSEEN = "\u202e\u2066\u200b\u200d\ufeff\u2028\ufe0f\u3164\x9b31m\x9d0;t\x9c"
HOSTILE = f"m{ESCAPES}{UNSEEN}\nbdaudit: PASS: removed\r[/red][bold]x"
RAW = (*"\x1b\x07\x9b\x9d\x9c\u202e\u2066\u200b\u200d\ufeff\u2028\ufe0f\u3164\r",)


def codes_in(output: bytes) -> list[str]:
    """Return what a terminal or an eye would take for something else than it is."""
    text = output.decode()
    return [sign for sign in RAW if sign in text]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bdaudit", *arguments]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), capture_output=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def on_a_terminal(*arguments: str) -> bytes:
    """Run a command on a terminal of its own, and return all that the terminal was sent."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(*arguments), stdin=follower, stdout=follower, stderr=follower, close_fds=True
    )
    os.close(follower)
    sent = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(leader)
    process.wait(timeout=120)
    return sent


@pytest.fixture
def removed(tmp_path: Path) -> Path:
    """A record of a removed backdoor: each exit code but 0 is of something else."""
    quiet = {0.01: 0.02, 0.02: 0.04}
    record = audit_record(defended=quiet, innocents=[quiet, quiet, quiet])
    record = record.model_copy(update={"verdict": judge(record, Policy())})
    path = tmp_path / "removed.json"
    path.write_text(to_json(record))
    return path


def test_the_check_sees_codes() -> None:
    assert set(codes_in(HOSTILE.encode())) == set(RAW)
    printed = subprocess.run(
        [sys.executable, "-c", f"print({HOSTILE!r})"], capture_output=True, check=True
    )
    assert "\x1b" in codes_in(printed.stdout)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", HOSTILE], 4),
        (["gate", HOSTILE], 4),
        (["report", HOSTILE, "--debug"], 4),
        (["audit", "--config", HOSTILE], 4),
        (["report", "r.json", "--report", HOSTILE], 2),
        (["inspect", f"--{HOSTILE}"], 2),
        ([HOSTILE], 2),
        (["audit", "m.pt", "--original", "o.pt", "--data", "d", "--eps", HOSTILE], 2),
        (["inspect", "m.pt", "--json", f"{HOSTILE}/m"], 4),
    ],
)
def test_errors_show_codes_and_send_none(arguments: list[str], code: int, tmp_path: Path) -> None:
    ran = run(*arguments, cwd=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert codes_in(ran.stdout + ran.stderr) == []
    assert b"\\u{1b}" in ran.stderr or b"\\x1b" in ran.stderr
    # What was named has no line of its own.
    assert not any(line.startswith("bdaudit: PASS") for line in ran.stderr.decode().split("\n"))


def test_a_name_that_is_no_text_is_a_wrong_argument(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*map(os.fsencode, command("inspect")), b"\xff.pt"], capture_output=True, timeout=120
    )
    assert ran.returncode == 2
    assert ran.stderr == b"bdaudit: usage: \\u{dcff}.pt: expected text in UTF-8; rename the file\n"


def test_a_terminal_gets_colours_of_ours_alone(tmp_path: Path) -> None:
    helped = on_a_terminal("gate", "--help")
    assert b"\x1b[1" in helped  # help has colours there
    assert b"\\u{" not in helped
    sent = on_a_terminal("inspect", str(tmp_path / HOSTILE))
    assert b"\\u{1b}]0;OWNED" in sent
    assert [sign for sign in codes_in(sent) if sign != "\r"] == []


@pytest.mark.parametrize(
    "arguments",
    [["report"], ["report", "--quiet"], ["report", "--json", "-"], ["report", "--report", "md=-"],
     ["gate"]],
)  # fmt: skip
@pytest.mark.parametrize("state", ["full", "closed", "no reader"])
def test_lost_output_has_exit_codes_of_its_own(
    removed: Path, arguments: list[str], state: str
) -> None:
    verb, *options = arguments
    line = command(verb, str(removed), *options)
    if state == "no reader":
        reader, writer = os.pipe()
        os.close(reader)
        ran = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, timeout=120)
        os.close(writer)
        assert (ran.returncode, ran.stderr) == (141, b"")
        return
    redirection = {"full": ">/dev/full", "closed": ">&-"}[state]
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *line], stderr=subprocess.PIPE, timeout=120
    )
    assert ran.returncode == 74
    assert b"cannot be written: " in ran.stderr
    assert b"Traceback" not in ran.stderr


def test_help_without_a_reader_is_no_verdict() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command("--help"), stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_report_that_is_lost_on_the_way_is_not_a_verdict(removed: Path, tmp_path: Path) -> None:
    ran = run("report", str(removed), "--report", "md=-", "--json", str(tmp_path / "r.json"))
    assert ran.returncode == 0
    with_limit = f'ulimit -f 1; trap "" XFSZ; exec "$@" --report html={tmp_path / "r.html"}'
    ran = subprocess.run(
        ["bash", "-c", with_limit, "sh", *command("report", str(removed))],
        capture_output=True,
        timeout=120,
    )
    assert ran.returncode == 74, ran.stderr
    assert b"REMOVED" in ran.stdout  # the answer is shown all the same
    assert not (tmp_path / "r.html").exists()


def test_stderr_that_cannot_be_written_changes_nothing(removed: Path) -> None:
    for redirection in ("2>/dev/full", "2>&-"):
        line = command("gate", str(removed.with_name("none.json")))
        ran = subprocess.run(["sh", "-c", f'"$@" {redirection}', "sh", *line], timeout=120)
        assert ran.returncode == 4


def test_no_exception_ends_as_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = set(EXIT_OF_RELEASE.values())
    assert not verdicts & {outcome.code for outcome in OUTCOMES.values()}
    assert exit_of(SystemExit(0)) == exit_of(RuntimeError("x")) == exit_of(BaseException()) == 70
    assert exit_of(InputError("f: bad")) == 4
    assert exit_of(OutputError("f: full")) == 74
    assert exit_of(ClosedOutputError("f")) == 141
    assert exit_of(KeyboardInterrupt()) == 130
    said = capsys.readouterr().err
    assert "bdaudit: unusable input: f: bad\n" in said
    # The broader class must not stand before the narrower one, which would never be found.
    kinds = list(OUTCOMES)
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind
