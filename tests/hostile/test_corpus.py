"""No hostile input hangs, fills memory, runs, shows a traceback or sends a control code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.hostile.bytes_of import ANSI
from tests.hostile.cases import ANSWERED, CANARY, SECRET, Case, Ran, faults
from tests.hostile.conftest import Range
from tests.hostile.generators import canary_pickle, content, corpus, preview


def _wrong(where: Range, cases: list[Case]) -> list[str]:
    wrong = []
    for case, ran, folder in where.run_all(cases):
        found = faults(case, ran, folder, most_bytes=where.most_bytes)
        if found:
            said = ran.stderr.decode("utf-8", "backslashreplace").strip().splitlines()[-1:]
            wrong.append(f"{case.name}: {'; '.join(found)} | {' '.join(said)[:300]}")
    return wrong


def test_the_corpus_is_as_large_as_the_docs_say(hostile_range: Range) -> None:
    cases = corpus(hostile_range.base)
    assert len(cases) >= 4000
    kinds = Counter(case.kind for case in cases if not case.spare)
    assert kinds.total() >= 700
    assert len(kinds) >= 20
    assert min(kinds.values()) >= 8, kinds


def test_the_corpus_holds(hostile_range: Range) -> None:
    """The same cases every time; `BDAUDIT_WHOLE_CORPUS=1` runs all, in a quarter of an hour."""
    whole = os.environ.get("BDAUDIT_WHOLE_CORPUS") == "1"
    wrong = _wrong(hostile_range, [c for c in corpus(hostile_range.base) if whole or not c.spare])
    assert not wrong, "\n".join(["", *wrong])


def test_a_dozen_cases_hold_as_processes(hostile_range: Range) -> None:
    """What forked children are told must be what a user's own command says."""
    cases = [case for case in corpus(hostile_range.base) if not (case.spare or case.settings)]
    cases = [c for c in cases if all("\0" not in part and "\udcff" not in part for part in c.argv)]
    wrong = []
    for case in Random(40).sample(cases, 12):
        folder, argv = hostile_range.prepare(case)
        done = subprocess.run(
            [sys.executable, "-m", "bdaudit", *argv],
            cwd=folder,
            env=hostile_range.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=600,
            check=False,
        )
        ran = Ran(done.returncode, 0.0, 0, done.stdout, done.stderr)
        if found := faults(case, ran, folder, most_bytes=1):
            wrong.append(f"{case.name}: {'; '.join(found)} | {done.stderr[-300:]!r}")
    assert not wrong, "\n".join(["", *wrong])


# --- positive controls: each promise is one that a test can see broken ---------------------------


def _control(where: Range, name: str, argv: tuple[str, ...], text: bytes | str = "") -> list[str]:
    case = Case(f"control-{name}", "control", argv, content("f.py", text), ANSWERED)
    ran, folder = where.run(case)
    return faults(case, ran, folder, most_bytes=where.most_bytes)


def test_a_canary_that_fires_is_seen(hostile_range: Range, tmp_path: Path) -> None:
    import pickle

    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        pickle.loads(canary_pickle())  # what bdaudit never does
    finally:
        os.chdir(here)
    ran = Ran(0, 0.0, 0, b"", b"")
    case = Case("control", "control", (), lambda folder: None)
    assert (tmp_path / CANARY).exists()
    found = faults(case, ran, tmp_path, most_bytes=1)
    assert "code in the file was run" in found


def test_code_that_was_allowed_is_run_and_seen(hostile_range: Range) -> None:
    code = f"open({CANARY!r}, 'w').close()\ndef f(x):\n    return x\n"
    toml = 'kind = "python"\n[target]\nlabel = 0\n[python]\nfunction = "c.py:f"\n'

    def build(folder: Path) -> None:
        (folder / "c.py").write_text(code)
        (folder / "t.toml").write_text(toml)

    argv = preview("t.toml", "{base}/clean.npz", "--allow-trigger-code")
    case = Case("control-code", "control", argv, build, ANSWERED)
    ran, folder = hostile_range.run(case)
    assert ran.code == 0
    assert faults(case, ran, folder, most_bytes=1 << 40) == ["code in the file was run"]


@pytest.mark.parametrize(
    ("name", "code", "fault"),
    [
        ("traceback", "1 / 0", "Traceback"),
        ("hang", "import time; time.sleep(1000)", "exit timeout"),
        (
            "memory",
            "x = bytearray(1_500_000_000); x[::4096] = b'x' * len(x[::4096])",
            "memory grew",
        ),
        ("control", f"import os; os.write(1, {ANSI!r}.encode())", "raw"),
        ("secret", f"print({SECRET!r})", "secret"),
        ("exit", "import os; os._exit(70)", "exit 70"),
    ],
)
def test_a_broken_promise_is_seen(
    hostile_range: Range, name: str, code: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python that the user names runs for real, so it can break any promise."""
    if name == "hang":
        monkeypatch.setattr(hostile_range, "seconds", 8.0)
    escape = "import traceback\ntry:\n    {}\nexcept Exception:\n    traceback.print_exc()\n"
    text = escape.format(code) + "def make(): pass\n"
    argv = (
        "score",
        "{base}/removed.safetensors",
        "--arch",
        "f.py:make",
        "--data",
        "{base}/clean.npz",
        "--original",
        "{base}/original.safetensors",
        "--trigger",
        "{base}/trigger.toml",
        "--stand-ins",
        "0",
        "--no-cache",
    )
    found = _control(hostile_range, name, argv, text)
    assert any(fault in one for one in found), found
