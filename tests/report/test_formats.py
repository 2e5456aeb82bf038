"""Several reports at once: destinations first, whole files only, a failure costs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.cli.output import JsonSink, ReportSinks
from bdaudit.errors import ConfigError, InputError, OutputError
from bdaudit.records import AuditRecord, FileDigest, read_record, to_json
from bdaudit.report.formats import FORMATS, render_report


@pytest.fixture(scope="module")
def audited(audited: AuditRecord) -> AuditRecord:
    """The audit as if its model lay in a file, which an attestation is about."""
    file = FileDigest(role="defended", path="a.safetensors", sha256="0" * 64, size_bytes=1)
    return audited.model_copy(update={"inputs": (file,)})


@pytest.fixture(scope="module")
def result(audited: AuditRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("result") / "result.json"
    path.write_text(to_json(audited), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_all_formats_are_written_from_the_json_alone(
    result: Path, audited: AuditRecord, tmp_path: Path
) -> None:
    options: list[object] = []
    for name in FORMATS:
        options += ["--report", f"{name}={tmp_path / name}"]
    ran = run("report", result, "--quiet", *options)
    assert ran.exit_code == 1  # of the verdict
    assert ran.stderr == ""
    for name in FORMATS:
        assert (tmp_path / name).read_text(encoding="utf-8") == render_report(name, audited)
    assert read_record(tmp_path / "json") == read_record(result)
    assert {p.name for p in tmp_path.iterdir()} == set(FORMATS)


def test_one_that_fails_leaves_the_others(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    sinks = ReportSinks([f"html={lost}/r.html", f"json={tmp_path}/r.json"])
    lost.rmdir()  # as a volume may go away during a long audit
    record = read_record(result)
    with pytest.raises(OutputError, match="1 of 2 reports"):
        sinks.write(record)
    said = capsys.readouterr().err
    assert said.startswith("bdaudit: no html report in ")
    assert said.count("\n") == 1
    assert read_record(tmp_path / "r.json") == record
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_several_records_get_files_of_their_own(audited: AuditRecord, tmp_path: Path) -> None:
    sinks = ReportSinks([f"md={tmp_path}/demo.md", f"json={tmp_path}/record"])
    for variant in ("dormant", "removed"):
        sinks.write(audited, variant=variant)
    assert {p.name for p in tmp_path.iterdir()} == {
        "demo-dormant.md", "demo-removed.md", "record-dormant", "record-removed"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("destinations", "error", "said"),
    [
        (["htlm=r.html"], ConfigError, "did you mean html"),
        (["zzz=r.html"], ConfigError, "known: html"),
        (["html"], ConfigError, "expected FORMAT=FILE"),
        (["html="], ConfigError, "expected FORMAT=FILE"),
        (["html=r.html", "json=r.html"], ConfigError, "already used by another output"),
        (["json=result.json"], ConfigError, "already used by another output"),
        (["html=nowhere/r.html"], InputError, "does not exist"),
        (["html=."], InputError, "is a folder"),
        (["html=/dev/null"], InputError, "is a device"),
    ],
)
def test_destinations_are_checked_first(
    destinations: list[str],
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        ReportSinks(destinations, json=JsonSink("result.json"))


def test_a_bad_destination_ends_an_audit_before_anything_is_opened(tmp_path: Path) -> None:
    for name in ("no.pt", "no.toml"):
        (tmp_path / name).touch()
    ran = run(
        "audit", tmp_path / "no.pt", "--original", tmp_path / "no.pt", "--data", tmp_path,
        "--trigger", tmp_path / "no.toml", "--report", f"html={tmp_path}/nowhere/r.html",
    )  # fmt: skip
    assert ran.exit_code == 4
    assert "nowhere does not exist" in ran.stderr


def test_a_report_can_go_to_stdout_alone(result: Path) -> None:
    ran = run("report", result, "--report", "json=-")
    assert json.loads(ran.stdout)["kind"] == "audit"
    assert run("report", result, "--report", "json=-", "--json", "-").exit_code == 2
