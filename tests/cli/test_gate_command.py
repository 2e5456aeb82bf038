"""`bdaudit gate`, and how audit and report end by a policy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.records import AuditRecord, FileDigest, to_json
from bdaudit.verdict import Policy, judge
from tests.cli.test_commands import environment
from tests.records import audit_record

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.9}
WEIGHTS = b"the audited weights"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a candidate and the records of two audits of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "candidate.pt").write_bytes(WEIGHTS)
    (tmp_path / "other.pt").write_bytes(b"something else")
    for name, curve in (("removed", QUIET), ("dormant", LOUD)):
        (tmp_path / f"{name}.json").write_text(to_json(record(curve)))
    return tmp_path


def record(curve: dict[float, float], policy: Policy | None = None) -> AuditRecord:
    made = audit_record(
        defended=curve,
        innocents=[QUIET, QUIET, QUIET],
        inputs=(
            FileDigest(
                role="defended",
                path="candidate.pt",
                sha256=hashlib.sha256(WEIGHTS).hexdigest(),
                size_bytes=len(WEIGHTS),
            ),
        ),
    )
    return made.model_copy(update={"verdict": judge(made, policy or Policy())})


@pytest.mark.parametrize(("name", "code", "word"), [("removed", 0, "PASS"), ("dormant", 1, "FAIL")])
def test_the_audited_file_passes_by_its_verdict(
    folder: Path, name: str, code: int, word: str
) -> None:
    result = run("gate", f"{name}.json", "candidate.pt")
    assert result.exit_code == code, result.output
    assert result.stdout.startswith(f"{word}: {name}.")
    assert result.stderr == ""


def test_another_file_fails_whatever_the_verdict(folder: Path) -> None:
    result = run("gate", "removed.json", "other.pt")
    assert result.exit_code == 1
    assert "other.pt" in result.stdout
    assert "is not what was audited" in result.stdout


def test_without_files_it_says_that_nothing_is_tied(folder: Path) -> None:
    result = run("gate", "removed.json", "--quiet")
    assert result.exit_code == 0
    assert "WARNING: no files were given" in result.stderr


def test_a_policy_judges_an_old_record_anew(folder: Path) -> None:
    (folder / "strict.toml").write_text("min_held_out = 100000\n")
    result = run("gate", "removed.json", "candidate.pt", "--policy", "strict.toml")
    assert result.exit_code == 3
    assert result.stdout.startswith("INCONCLUSIVE")
    assert "min_held_out 100000" in result.stdout
    (folder / "strict.toml").write_text("min_held_out = 100000\ninconclusive = 'warn'\n")
    let_through = run("gate", "removed.json", "candidate.pt", "--policy", "strict.toml", "-q")
    assert let_through.exit_code == 0
    assert "WARNING: the audit could not tell" in let_through.stderr


def test_without_a_policy_the_records_own_limits_stay(folder: Path) -> None:
    strict = record(QUIET, Policy(min_held_out=100_000))
    (folder / "strict.json").write_text(to_json(strict))
    result = run("gate", "strict.json", "candidate.pt")
    assert result.exit_code == 3
    assert "the record's own" in result.stdout


def test_the_projects_policy_is_the_default(folder: Path) -> None:
    (folder / "bdaudit.toml").write_text("[policy]\nallowed_sha256 = ['" + "0" * 64 + "']\n")
    result = run("gate", "removed.json", "candidate.pt")
    assert result.exit_code == 1
    assert "not among the allowed files" in result.stdout
    assert "limits: bdaudit.toml" in result.stdout


def test_the_decision_is_written(folder: Path) -> None:
    assert run("gate", "removed.json", "candidate.pt", "--json", "decision.json").exit_code == 0
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["release"] == "pass"
    assert decision["files"][0]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (
        decision["record_sha256"]
        == hashlib.sha256((folder / "removed.json").read_bytes()).hexdigest()
    )


def edit(text: str) -> str:
    return text.replace('"outcome": "dormant"', '"outcome": "removed"')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit, "was edited"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "version 2"),
        (lambda text: text[:-300], "JSON"),
        (lambda _: "{}", "not a bdaudit record"),
    ],
)
def test_a_record_that_cannot_be_trusted_never_passes(
    folder: Path, change: object, said: str
) -> None:
    path = folder / "dormant.json"
    path.write_text(change(path.read_text()))
    for arguments in (("gate", "dormant.json", "candidate.pt"), ("report", "dormant.json")):
        result = run(*arguments)
        assert result.exit_code == 4, result.output
        assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.json", "candidate.pt"), "nowhere.json"),
        (("removed.json", "nowhere.pt"), "nowhere.pt"),
        (("removed.json", "."), "is a folder"),
        (("removed.json", "candidate.pt", "--policy", "nowhere.toml"), "nowhere.toml"),
        (("removed.json", "candidate.pt", "--policy", "contradictory.toml"), "contradict|above 1"),
        (("removed.json", "candidate.pt", "--json", "no/decision.json"), "does not exist"),
        (("removed.json", "candidate.pt", "--json", "/proc/decision.json"), "cannot be written"),
    ],
)
def test_what_cannot_be_used_ends_with_4(
    folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    (folder / "contradictory.toml").write_text("saturation = 0.95\nlift = 0.2\n")
    result = run("gate", *arguments)
    assert result.exit_code == 4, result.output
    assert any(part in result.stderr for part in said.split("|"))
    assert not result.stdout


def test_a_report_ends_as_the_policy_said(folder: Path) -> None:
    lenient = record(QUIET, Policy(min_held_out=100_000, inconclusive="warn"))
    (folder / "lenient.json").write_text(to_json(lenient))
    result = run("report", "lenient.json", "--quiet")
    assert result.exit_code == 0
    assert "WARNING: the audit could not tell" in result.stderr
    assert "Warning: the audit could not tell" in run("report", "lenient.json").stdout


_WITHOUT_TORCH = {
    "gate": (0, "gate removed.json candidate.pt"),
    "report": (0, "report removed.json"),
    "page": (0, "report removed.json --report html=page.html"),
    "compare": (0, "compare removed.json dormant.json"),
    "diff": (1, "diff removed.json dormant.json"),
    "verify": (0, "verify removed.json --digests-only"),
    "ledger": (0, "verify ."),
}


def test_what_reads_records_does_not_load_torch(folder: Path) -> None:
    """In one process, for each start costs seconds; none of them may have loaded it."""
    code = (
        "import json, sys\n"
        "from bdaudit.cli import app\n"
        "ended = {}\n"
        "for name, words in json.loads(sys.argv[1]).items():\n"
        "    try: app(words.split())\n"
        "    except SystemExit as end: ended[name] = [end.code or 0, 'torch' in sys.modules]\n"
        "print(json.dumps(ended), file=sys.stderr)"
    )
    asked = json.dumps({name: words for name, (_, words) in _WITHOUT_TORCH.items()})
    done = subprocess.run(
        [sys.executable, "-c", code, asked],
        env=environment(),
        cwd=folder,
        capture_output=True,
        check=False,
    )
    ended = json.loads(done.stderr.decode().splitlines()[-1])
    assert ended == {name: [code, False] for name, (code, _) in _WITHOUT_TORCH.items()}


def test_weights_nobody_audited_fail_and_notes_are_read_out(folder: Path) -> None:
    made = record(QUIET)
    chosen = made.model_named("defended").model_copy(
        update={"weights": "model", "unaudited": ("ema",), "notes": ("stripped 'module.'",)}
    )
    models = tuple(chosen if m.name == "defended" else m for m in made.models)
    (folder / "two.json").write_text(to_json(made.model_copy(update={"models": models})))
    result = run("gate", "two.json", "candidate.pt")
    assert result.exit_code == 1
    assert result.stdout.startswith("FAIL: the weights under 'model' were audited")
    assert "'ema'" in result.stdout
    assert "note: defended: stripped 'module.'" in result.stdout
    (folder / "policy.toml").write_text('unaudited_weights = "allow"\n')
    allowed = run("gate", "two.json", "candidate.pt", "--policy", "policy.toml")
    assert allowed.exit_code == 0
    assert "'ema'" in allowed.stderr
