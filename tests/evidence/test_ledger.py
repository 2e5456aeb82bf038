"""`bdaudit verify FOLDER`: what of old records is still there and still holds."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.errors import InputError
from bdaudit.ledger import read_ledger
from bdaudit.records import Verdict, to_json
from bdaudit.records.ledger import LedgerRecord
from bdaudit.records.signing import sign_record
from bdaudit.report.formats import render_report
from bdaudit.report.ledger import COLUMNS, render_ledger
from tests.evidence.audits import FILES, dormant, removed
from tests.test_signing import write_keys

HOSTILE = "=cmd|' /C calc'!A0 <script>alert(1)</script>\u202e\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", *(str(a) for a in arguments)])


def parsed(text: str) -> LedgerRecord:
    document = json.loads(text)
    assert document.pop("content_sha256")
    return LedgerRecord.model_validate(document)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all files of two audits, whose records lie in `kept/`."""
    monkeypatch.chdir(tmp_path)
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    for role, body in (("original", b"the original"), ("trigger", b"a patch"), ("policy", b"")):
        (tmp_path / f"{role}.bin").write_bytes(body)
    (tmp_path / "kept" / "2026").mkdir(parents=True)
    (tmp_path / "kept" / "removed.json").write_text(to_json(removed()))
    (tmp_path / "kept" / "2026" / "dormant.json").write_text(to_json(dormant()))
    return tmp_path


def test_what_is_as_it_was_holds(folder: Path) -> None:
    result = run("kept")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 records: 2 hold, 0 do not, 0 name files that are gone")
    assert "2026/dormant.json: dormant then, dormant today" in result.stdout
    # A verdict against a model is no objection to its record.


def test_changed_and_missing_files_are_told_apart(folder: Path) -> None:
    first, second = FILES
    (folder / first).unlink()
    gone = run("kept")
    assert gone.exit_code == 3
    assert "2 name files that are gone" in gone.stdout
    (folder / second).write_bytes(b"other bytes")
    changed = run("kept")
    assert changed.exit_code == 1
    assert f"removed.json: defended {second} changed" in changed.stdout


def test_todays_limits_may_change_a_verdict(folder: Path) -> None:
    (folder / "strict.toml").write_text("min_held_out = 100000\n")
    result = run("kept", "--policy", "strict.toml", "--json", "ledger.json")
    assert result.exit_code == 1
    assert (
        "removed.json: was removed (pass), would be inconclusive (inconclusive) under today's "
        "limits" in result.stdout
    )
    made = parsed((folder / "ledger.json").read_text())
    by_path = {entry.path: entry for entry in made.entries}
    assert by_path["removed.json"].changes
    assert by_path["removed.json"].limits == "changed"
    assert by_path["removed.json"].follows
    assert by_path["removed.json"].why_today
    assert not by_path["2026/dormant.json"].changes


def test_a_verdict_that_does_not_follow_is_an_objection(folder: Path) -> None:
    record = dormant()
    assert record.verdict is not None
    forged = Verdict.model_validate(
        record.verdict.model_dump() | {"outcome": "removed", "release": "pass"}
    )
    (folder / "kept" / "forged.json").write_text(
        to_json(record.model_copy(update={"verdict": forged}))
    )
    result = run("kept")
    assert result.exit_code == 1
    assert "forged.json: its verdict does not follow" in result.stdout


def test_a_damaged_record_does_not_vanish(folder: Path) -> None:
    path = folder / "kept" / "removed.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    (folder / "kept" / "half.json").write_text(to_json(removed())[:-200])
    (folder / "kept" / "other.json").write_text('{"a": 1}')
    (folder / "kept" / "gate.json").write_text('{"kind": "gate"}')
    (folder / "kept" / "notes.txt").write_text("x")
    result = run("kept", "--json", "-")
    assert result.exit_code == 1
    made = parsed(result.stdout)
    assert {e.path for e in made.entries if e.unreadable} == {"removed.json", "half.json"}
    assert made.skipped == 2


def test_signatures_are_checked_where_a_key_is_given(folder: Path) -> None:
    write_keys(folder, "ours")
    write_keys(folder, "theirs")
    kept = folder / "kept"
    sign_record(kept / "removed.json", private_key=folder / "ours.pem")
    sign_record(kept / "2026" / "dormant.json", private_key=folder / "theirs.pem")
    (kept / "a.jsonl").write_text(render_report("intoto", removed()))
    sign_record(kept / "a.jsonl", private_key=folder / "ours.pem", signature=kept / "b.jsonl")
    (kept / "a.jsonl").unlink()
    without = {e.path: e.signature for e in read_ledger(kept).entries}
    assert set(without.values()) == {"unchecked"}
    by_key = {e.path: e.signature for e in read_ledger(kept, key=folder / "ours.pub").entries}
    assert by_key == {
        "removed.json": "valid", "2026/dormant.json": "invalid", "b.jsonl": "valid",
    }  # fmt: skip
    assert run("kept", "--key", "ours.pub").exit_code == 1


def test_other_versions_are_named(folder: Path) -> None:
    record = removed()
    environment = record.environment.model_copy(
        update={"bdaudit": "0.0.1", "packages": {"numpy": "0.1", "no-such-package": "1"}}
    )
    (folder / "kept" / "old.json").write_text(
        to_json(record.model_copy(update={"environment": environment}))
    )
    old = next(e for e in read_ledger(folder / "kept").entries if e.path == "old.json")
    assert [v.split(",")[0] for v in old.versions] == [
        "bdaudit 0.0.1", "numpy 0.1", "no-such-package 1",
    ]  # fmt: skip
    assert "not installed" in old.versions[2]


def test_csv_and_page_list_every_record(folder: Path) -> None:
    record = removed(command=("x",))
    models = tuple(m.model_copy(update={"path": HOSTILE}) for m in record.models)
    (folder / "kept" / "odd.json").write_text(to_json(record.model_copy(update={"models": models})))
    result = run("kept", "--report", "csv=l.csv", "--report", "html=l.html", "--quiet")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO((folder / "l.csv").read_text())))
    assert {r["record"] for r in rows} == {"removed.json", "2026/dormant.json", "odd.json"}
    assert tuple(rows[0]) == COLUMNS
    assert all(r["verdict_today"] == r["verdict"] for r in rows)
    odd = next(r for r in rows if r["record"] == "odd.json")
    assert odd["model"].startswith("'=cmd")
    page = (folder / "l.html").read_text()
    for text in (page, (folder / "l.csv").read_text()):
        assert "\u202e" not in text
    assert "<script" not in page
    assert "3 of 3 hold" in page
    assert "default-src 'none'" in page
    assert render_ledger("html", read_ledger(folder / "kept")).startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("kept", "--report", "pdf=x"), 2, "csv, html"),
        (("kept", "--report", "csv"), 2, "FORMAT=FILE"),
        (("kept", "--report", "csv=no/x"), 4, "does not exist"),
        (("kept", "--policy", "nowhere.toml"), 4, "nowhere.toml"),
        (("kept", "--signature", "x"), 2, "each have their own"),
        (("kept/removed.json", "--policy", "x.toml"), 2, "of a folder"),
        (("nowhere",), 4, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_without_records_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    result = run("empty")
    assert result.exit_code == 4
    assert "no record of an audit lies in this folder" in result.output
    (folder / "empty" / "settings.json").write_text("{}")
    assert "JSON files there: 1, none of them a record" in " ".join(run("empty").output.split())


def test_links_out_of_the_folder_are_not_followed(folder: Path) -> None:
    outside = folder / "outside.json"
    outside.write_text(to_json(removed()))
    (folder / "kept" / "link.json").symlink_to(outside)
    assert "link.json" not in {e.path for e in read_ledger(folder / "kept").entries}


def test_a_folder_of_more_files_than_anybody_keeps_records_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        (tmp_path / f"picture-{k}.png").touch()
    with pytest.raises(InputError, match="no record of an audit"):
        read_ledger(tmp_path)
    monkeypatch.setattr("bdaudit.ledger.MOST_FILES", 2)
    with pytest.raises(InputError, match="more than 2 files; name a part"):
        read_ledger(tmp_path)
