"""Signatures over records, with real keys and the real library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from bdaudit.cli import app
from bdaudit.errors import ConfigError, InputError, RecordError
from bdaudit.records import to_json
from bdaudit.records.signing import check_signature, sign_record
from bdaudit.verdict import Policy, judge
from tests.records import audit_record

QUIET = {0.02: 0.03, 0.05: 0.05}
PASSWORD = "correct horse"


def write_keys(folder: Path, name: str, password: str | None = None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{name}.pem").write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = audit_record(defended=QUIET, innocents=[QUIET, QUIET, QUIET])
    verdict = judge(made, Policy())
    (tmp_path / "result.json").write_text(to_json(made.model_copy(update={"verdict": verdict})))
    write_keys(tmp_path, "ours")
    write_keys(tmp_path, "theirs")
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_a_signed_record_passes_the_gate_and_an_unsigned_one_does_not(folder: Path) -> None:
    code, output = run("gate", "result.json", "--key", "ours.pub")
    assert code == 4
    assert "is not signed" in output
    code, output = run("sign", "result.json", "--key", "ours.pem")
    assert code == 0, output
    assert "wrote result.json.sig" in output
    code, output = run("gate", "result.json", "--key", "ours.pub")
    assert code == 0, output
    assert "signed by: ours.pub" in output


def test_an_edit_with_a_fresh_digest_is_found_by_the_signature(folder: Path) -> None:
    sign_record(folder / "result.json", private_key=folder / "ours.pem")
    forged = audit_record(defended=QUIET, innocents=[QUIET, QUIET, QUIET], seed=9)
    verdict = judge(forged, Policy())
    (folder / "result.json").write_text(to_json(forged.model_copy(update={"verdict": verdict})))
    assert run("gate", "result.json")[0] == 0, "the digest over the content is in order"
    for command in ("gate", "verify"):
        code, output = run(command, "result.json", "--key", "ours.pub")
        assert code == 4
        assert "changed since it was signed" in output


def test_another_key_is_another_signer(folder: Path) -> None:
    sign_record(folder / "result.json", private_key=folder / "theirs.pem")
    with pytest.raises(RecordError, match="another key"):
        check_signature(folder / "result.json", public_key=folder / "ours.pub")
    check_signature(folder / "result.json", public_key=folder / "theirs.pub")


def test_the_wrong_half_of_a_key_pair_is_called_by_its_name(folder: Path) -> None:
    assert run("sign", "result.json", "--key", "ours.pem")[0] == 0
    code, output = run("gate", "result.json", "--key", "ours.pem")
    assert code == 4
    assert "got a private key" in output
    assert "-pubout" in output
    code, output = run("sign", "result.json", "--key", "ours.pub")
    assert code == 4
    assert "got a public key" in output
    (folder / "no.key").write_text("x")
    assert "got a" not in run("gate", "result.json", "--key", "no.key")[1]


def test_a_record_may_be_moved_with_its_signature(folder: Path) -> None:
    made = sign_record(
        folder / "result.json", private_key=folder / "ours.pem", signature=folder / "s.bundle"
    )
    assert made == folder / "s.bundle"
    (folder / "result.json").rename(folder / "kept.json")
    check_signature(folder / "kept.json", public_key=folder / "ours.pub", signature=made)


def test_the_password_comes_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_keys(folder, "locked", PASSWORD)
    with pytest.raises(ConfigError, match="KEY_PASSWORD is not set"):
        sign_record(
            folder / "result.json",
            private_key=folder / "locked.pem",
            password_env="KEY_PASSWORD",
        )
    with pytest.raises(InputError, match="its password") as caught:
        sign_record(folder / "result.json", private_key=folder / "locked.pem")
    monkeypatch.setenv("KEY_PASSWORD", PASSWORD)
    sign_record(
        folder / "result.json", private_key=folder / "locked.pem", password_env="KEY_PASSWORD"
    )
    check_signature(folder / "result.json", public_key=folder / "locked.pub")
    assert PASSWORD not in str(caught.value)


def test_what_cannot_be_signed_or_checked_ends_with_4(folder: Path) -> None:
    for arguments in (
        ("sign", "nowhere.json", "--key", "ours.pem"),
        ("sign", "result.json", "--key", "nowhere.pem"),
        ("sign", "result.json", "--key", "ours.pub"),
        ("sign", "result.json", "--key", "ours.pem", "--signature", "no/such/folder.sig"),
        ("gate", "result.json", "--key", "nowhere.pub"),
    ):
        code, output = run(*arguments)
        assert code == 4, (arguments, output)
        assert "Traceback" not in output
    assert run("gate", "result.json", "--signature", "x.sig")[0] == 2
    (folder / "result.json.sig").write_text("no bundle")
    assert run("gate", "result.json", "--key", "ours.pub")[0] == 4
    (folder / "broken.pub").write_text("no key")
    assert run("gate", "result.json", "--key", "broken.pub")[0] == 4
    document = json.loads((folder / "result.json").read_text())
    document["seed"] = 99
    (folder / "result.json").write_text(json.dumps(document))
    code, output = run("sign", "result.json", "--key", "ours.pem")
    assert code == 4, "an edited record is not signed"
    assert "was edited" in output


def test_the_signature_is_one_that_the_signing_tool_itself_checks(folder: Path) -> None:
    sign_record(folder / "result.json", private_key=folder / "ours.pem")
    tool = Path(sys.executable).with_name("model_signing")
    arguments = [
        *(tool, "verify", "key", "result.json"),
        *("--signature", "result.json.sig", "--public_key", "ours.pub"),
    ]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
