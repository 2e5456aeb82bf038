"""in-toto statements: read by upstream's readers, and as strict at the gate as a record."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from google.protobuf import json_format
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from typer.testing import CliRunner, Result

from bdaudit.cli import app
from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord, StepStatus, read_record, to_json
from bdaudit.records.attestations import AUDIT, LEFT_OUT, TEST_RESULT, read_attested
from bdaudit.records.reading import sealed
from bdaudit.records.signing import sign_record
from bdaudit.records.summary import list_figures
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy
from tests.evidence.audits import (
    FILES,
    active,
    digest,
    dormant,
    inconclusive,
    inputs,
    removed,
)
from tests.test_signing import write_keys

Change = Callable[[list[dict[str, Any]]], Any]


def statements(record: AuditRecord) -> list[dict[str, Any]]:
    return [json.loads(line) for line in render_report("intoto", record).splitlines()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records, their attestations, the candidate's files and two pairs of keys."""
    monkeypatch.chdir(tmp_path)
    for name, record in (("removed", removed()), ("dormant", dormant())):
        (tmp_path / f"{name}.json").write_text(to_json(record))
        (tmp_path / f"{name}.jsonl").write_text(render_report("intoto", record))
    for name, body in FILES.items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "other.bin").write_bytes(b"something else")
    write_keys(tmp_path, "ours")
    write_keys(tmp_path, "theirs")
    return tmp_path


# -- what upstream's readers make of them ----------------------------------------------------------


@pytest.mark.parametrize("make", [removed, dormant, active, inconclusive])
def test_upstream_reads_both_statements(make: Callable[[], AuditRecord]) -> None:
    both = statements(make())
    assert [s["predicateType"] for s in both] == [TEST_RESULT, AUDIT]
    for statement in both:
        parsed = json_format.ParseDict(statement, statement_pb2.Statement())
        Statement.copy_from_pb(parsed).validate()
        named = {subject.name: dict(subject.digest) for subject in parsed.subject}
        # All files of a model in shards, and no other.
        assert named == {name: {"sha256": digest(body)} for name, body in FILES.items()}
    result = json_format.ParseDict(both[0]["predicate"], test_result_pb2.TestResult())
    assert all(descriptor.digest["sha256"] for descriptor in result.configuration)


@pytest.mark.parametrize(
    ("record", "result"),
    [
        (removed(), "PASSED"),
        (dormant(), "FAILED"),
        (active(), "FAILED"),
        (inconclusive(), "FAILED"),
        (inconclusive(policy=Policy(inconclusive="warn")), "WARNED"),
        (removed(steps=(StepStatus(name="existence", status="failed", reason="x"),)), None),
        (removed(policy=Policy(allowed_sha256=("0" * 64,))), "FAILED"),
    ],
)
def test_the_result_follows_the_release(record: AuditRecord, result: str | None) -> None:
    predicate = statements(record)[0]["predicate"]
    assert record.verdict is not None
    if result is not None:
        assert predicate["result"] == result
    assert (predicate["result"] == "FAILED") == (record.verdict.release != "pass")
    if predicate["result"] == "PASSED":
        assert predicate["warnedTests"] == predicate["failedTests"] == []
    if predicate["result"] == "FAILED":
        assert predicate["failedTests"]
    names = [*predicate["passedTests"], *predicate["warnedTests"], *predicate["failedTests"]]
    assert len(names) == len(set(names))


def test_what_is_configured_is_named_by_digest() -> None:
    record = removed()
    named = {
        entry["name"]: entry["digest"]["sha256"]
        for entry in statements(record)[0]["predicate"]["configuration"]
    }
    assert named["original.bin"] == digest(b"the original")
    assert named["images"] == record.data.sha256
    assert named["trigger"] == record.trigger.sha256
    assert record.verdict is not None
    assert named["limits"] == record.verdict.policy_sha256
    assert not set(FILES) & set(named)


def test_the_second_holds_figures_and_the_record() -> None:
    record = dormant()
    predicate = statements(record)[1]["predicate"]
    assert predicate["verdict"]["outcome"] == "dormant"
    by_name = {(row["name"], row.get("eps")): row for row in predicate["figures"]}
    assert by_name["reactivated_asr", 0.05]["value"] == 0.9
    assert by_name["lift", 0.05]["value"] == pytest.approx(0.85)
    assert by_name["bec", None]["low"] == 0.35
    assert len(predicate["figures"]) == len(list_figures(record))
    assert predicate["recordContentSha256"] == sealed(record)["content_sha256"]
    assert predicate["leftOut"] == []


def test_what_is_left_out_is_named(folder: Path) -> None:
    from bdaudit.records import KeptTrigger

    record = removed(kept_trigger=KeptTrigger(files={"trigger.toml": "eJw="}))
    predicate = statements(record)[1]["predicate"]
    assert predicate["leftOut"] == ["kept_trigger"]
    assert set(predicate["leftOut"]) <= set(LEFT_OUT)
    assert predicate["record"]["kept_trigger"] is None
    assert predicate["recordContentSha256"] != predicate["record"]["content_sha256"]
    path = folder / "kept.jsonl"
    path.write_text(render_report("intoto", record))
    assert read_attested(path) == record.model_copy(update={"kept_trigger": None})


def test_a_candidate_without_files_is_not_attested() -> None:
    with pytest.raises(RecordError, match="no digest of the candidate"):
        render_report("intoto", removed(inputs=()))


def test_the_upstream_verifier_takes_the_signature(folder: Path) -> None:
    made = sign_record(folder / "removed.jsonl", private_key=folder / "ours.pem")
    lines = made.read_text().splitlines()
    assert len(lines) == 2
    for line, statement in zip(lines, statements(removed()), strict=True):
        bundle = json.loads(line)
        keyid = bundle["verificationMaterial"]["publicKey"]["hint"]
        for name, good in (("ours", True), ("theirs", False)):
            public = serialization.load_pem_public_key((folder / f"{name}.pub").read_bytes())
            key = SSlibKey.from_crypto(public, keyid=keyid)
            envelope = Envelope.from_dict(json.loads(line)["dsseEnvelope"])
            if good:
                assert list(envelope.verify([key], 1)) == [keyid]
            else:
                with pytest.raises(VerificationError):
                    envelope.verify([key], 1)
        assert json.loads(envelope.payload) == statement


def test_sigstore_reads_the_bundles(folder: Path) -> None:
    from sigstore_models.bundle.v1 import Bundle

    made = sign_record(folder / "removed.jsonl", private_key=folder / "ours.pem")
    record = sign_record(folder / "removed.json", private_key=folder / "ours.pem")
    of_record = Bundle.from_dict(json.loads(record.read_text()))
    for line in made.read_text().splitlines():
        bundle = Bundle.from_dict(json.loads(line))
        assert bundle.media_type == of_record.media_type
        assert bundle.verification_material.public_key == (
            of_record.verification_material.public_key
        )
        assert bundle.dsse_envelope.payload_type == of_record.dsse_envelope.payload_type


# -- at the gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["removed", "dormant"])
def test_the_gate_decides_as_by_the_record(folder: Path, name: str) -> None:
    by_record = run("gate", f"{name}.json", *FILES)
    by_attestation = run("gate", f"{name}.jsonl", *FILES)
    assert by_attestation.exit_code == by_record.exit_code == (0 if name == "removed" else 1)
    assert by_record.stdout.splitlines()[0] == by_attestation.stdout.splitlines()[0]
    sign_record(folder / f"{name}.jsonl", private_key=folder / "ours.pem")
    for path in (f"{name}.jsonl", f"{name}.jsonl.sig"):
        signed = run("gate", path, *FILES, "--key", "ours.pub")
        assert signed.exit_code == by_record.exit_code, signed.output
        assert "signed by: ours.pub" in signed.stdout
        assert signed.stderr == by_record.stderr


def test_files_and_policy_are_held_against_it(folder: Path) -> None:
    shards = list(FILES)
    assert run("gate", "removed.jsonl", "other.bin").exit_code == 1
    half = run("gate", "removed.jsonl", shards[0])
    assert half.exit_code == 1
    assert "also consists of" in half.stdout
    assert "no files were given" in run("gate", "removed.jsonl").stderr
    (folder / "strict.toml").write_text("min_held_out = 100000\n")
    assert run("gate", "removed.jsonl", *shards, "--policy", "strict.toml").exit_code == 3


def test_with_a_key_an_unsigned_one_is_refused(folder: Path) -> None:
    refused = run("gate", "removed.jsonl", *FILES, "--key", "ours.pub")
    assert refused.exit_code == 4
    assert "is not signed" in refused.stderr
    sign_record(folder / "removed.jsonl", private_key=folder / "theirs.pem")
    for path in ("removed.jsonl", "removed.jsonl.sig"):
        refused = run("gate", path, *FILES, "--key", "ours.pub")
        assert refused.exit_code == 4
        assert "signed by another key" in refused.stderr


def test_without_a_key_a_signature_is_said_not_to_be_checked(folder: Path) -> None:
    sign_record(folder / "removed.jsonl", private_key=folder / "theirs.pem")
    result = run("gate", "removed.jsonl.sig", *FILES)
    assert result.exit_code == 0
    assert "signature was not checked" in result.stderr


def test_a_record_with_a_key_still_needs_its_own_signature(folder: Path) -> None:
    assert run("gate", "removed.json", *FILES, "--key", "ours.pub").exit_code == 4
    # The signed statements of one audit are no signature of a record.
    made = sign_record(folder / "removed.jsonl", private_key=folder / "ours.pem")
    made.rename(folder / "removed.json.sig")
    assert run("gate", "removed.json", *FILES, "--key", "ours.pub").exit_code == 4


def set_outcome(both: list[dict[str, Any]]) -> None:
    both[1]["predicate"]["verdict"]["outcome"] = "removed"


def set_release(both: list[dict[str, Any]]) -> None:
    both[1]["predicate"]["verdict"]["release"] = "pass"


def set_result(both: list[dict[str, Any]]) -> None:
    both[0]["predicate"]["result"] = "PASSED"


def set_figure(both: list[dict[str, Any]]) -> None:
    both[1]["predicate"]["figures"][1]["value"] = 0.0


def set_in_record(both: list[dict[str, Any]]) -> None:
    both[1]["predicate"]["record"]["verdict"]["outcome"] = "removed"


def no_digest(both: list[dict[str, Any]]) -> None:
    del both[1]["predicate"]["record"]["content_sha256"]


def other_subject(both: list[dict[str, Any]]) -> None:
    both[1]["subject"][0]["digest"]["sha256"] = "0" * 64


def fewer_subjects(both: list[dict[str, Any]]) -> None:
    del both[0]["subject"][1]


def more_subjects(both: list[dict[str, Any]]) -> None:
    both[0]["subject"].append({"name": "x", "digest": {"sha256": "0" * 64}})


def no_subjects(both: list[dict[str, Any]]) -> None:
    del both[0]["subject"]


def other_type(both: list[dict[str, Any]]) -> None:
    both[0]["predicateType"] = "https://slsa.dev/provenance/v1"


def result_alone(both: list[dict[str, Any]]) -> None:
    del both[1]


def twice(both: list[dict[str, Any]]) -> None:
    both.append(both[1])


def of_another_audit(both: list[dict[str, Any]]) -> None:
    both[0] = statements(removed())[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_outcome, "beside the record"),
        (set_release, "beside the record"),
        (set_result, "does not follow"),
        (set_figure, "figure beside"),
        (set_in_record, "was edited"),
        (no_digest, "no digest of its own content"),
        (other_subject, "other files"),
        (fewer_subjects, "other files"),
        (more_subjects, "other files"),
        (no_subjects, "by digest"),
        (other_type, "of type"),
        (result_alone, "expected one statement"),
        (twice, "expected one statement"),
        (of_another_audit, "does not follow"),
    ],
)
def test_what_contradicts_itself_never_passes(folder: Path, change: Change, said: str) -> None:
    both = statements(dormant())
    change(both)
    path = folder / "edited.jsonl"
    path.write_text("".join(f"{json.dumps(s)}\n" for s in both))
    for arguments in (("gate", path, *FILES), ("sign", path, "--key", "ours.pem")):
        result = run(*arguments)
        assert result.exit_code == 4, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output


def test_a_bundle_that_was_changed_is_refused(folder: Path) -> None:
    made = sign_record(folder / "dormant.jsonl", private_key=folder / "ours.pem")
    theirs = sign_record(
        folder / "removed.jsonl", private_key=folder / "theirs.pem", signature=folder / "t"
    )
    first, second = (json.loads(line) for line in made.read_text().splitlines())
    forged = [json.loads(line) for line in theirs.read_text().splitlines()]

    def refused(*bundles: dict[str, Any]) -> str:
        path = folder / "forged"
        path.write_text("".join(f"{json.dumps(b)}\n" for b in bundles))
        result = run("gate", path, *FILES, "--key", "ours.pub")
        assert result.exit_code == 4, result.output
        return result.stderr

    # Payload of another audit under our signature, and their statement beside ours.
    swapped = json.loads(json.dumps(second))
    swapped["dsseEnvelope"]["payload"] = forged[1]["dsseEnvelope"]["payload"]
    assert "no valid signature" in refused(swapped)
    assert "no valid signature" in refused(forged[1])
    no_signature = json.loads(json.dumps(second))
    no_signature["dsseEnvelope"]["signatures"] = []
    assert "no valid signature" in refused(no_signature)
    two = json.loads(json.dumps(second))
    two["dsseEnvelope"]["signatures"] *= 2
    assert "no valid signature" in refused(two)
    typed = json.loads(json.dumps(second))
    typed["dsseEnvelope"]["payloadType"] = "text/plain"
    assert "payload of type" in refused(typed)
    broken = json.loads(json.dumps(second))
    broken["dsseEnvelope"]["payload"] = "%%%"
    assert "not base64" in refused(broken)
    mixed = json.loads(base64.b64decode(first["dsseEnvelope"]["payload"]))
    assert "some of its statements are signed" in refused(mixed, second)
    # What model-signing signs with the same key is another kind of statement.
    record = sign_record(folder / "removed.json", private_key=folder / "ours.pem")
    assert "of type" in refused(json.loads(record.read_text()))


def test_statements_beside_a_signature_of_others_are_refused(folder: Path) -> None:
    made = sign_record(folder / "dormant.jsonl", private_key=folder / "ours.pem")
    made.rename(folder / "removed.jsonl.sig")
    result = run("gate", "removed.jsonl", *FILES, "--key", "ours.pub")
    assert result.exit_code == 4
    assert "signs other statements" in result.stderr


def test_what_is_signed_is_not_signed_again(folder: Path) -> None:
    assert run("sign", "removed.jsonl", "--key", "ours.pem").exit_code == 0
    again = run("sign", "removed.jsonl.sig", "--key", "ours.pem")
    assert again.exit_code == 4
    assert "is signed already" in again.stderr


def test_spread_over_lines_it_is_still_read(folder: Path) -> None:
    path = folder / "pretty.json"
    path.write_text(json.dumps(statements(removed())[1], indent=2))
    assert read_attested(path) == read_record(folder / "removed.json")
    assert inputs()[0].path == next(iter(FILES))


def test_hostile_names_are_visible_and_the_record_is_as_it_was(folder: Path) -> None:
    hostile = "a\u202eb\x1b[2J\n.bin"
    record = removed(inputs=inputs({hostile: b"x"}))
    text = render_report("intoto", record)
    assert text.isascii()
    assert text.count("\n") == 2
    both = [json.loads(line) for line in text.splitlines()]
    assert both[0]["subject"][0]["name"] == "a\\u{202e}b\\u{1b}[2J .bin"
    path = folder / "hostile.jsonl"
    path.write_text(text)
    assert read_attested(path) == record
