"""A whole audit of files behind addresses: fetched, recorded by name and digest, no secret kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bdaudit
from bdaudit.auditing import AuditSettings, ComputeSettings, ModelSettings, SplitSettings
from bdaudit.auditing.verification import verify
from bdaudit.cases.sources import can_only_be_asked, default_modes
from bdaudit.cli import app
from bdaudit.errors import FetchError, TriggerError
from bdaudit.fetching import cached
from bdaudit.foundation.sources import parse_model
from bdaudit.records import AuditRecord, read_record, to_json
from tests.cli.twin_files import write_twin_files
from tests.fetching.server import FileServer, serving

FACTORY = f"{Path(__file__).parents[1] / 'cli' / 'twin_factory.py'}:twin"
SETTINGS = AuditSettings(
    stand_ins=0,
    eps=(0.05,),
    passes=4,
    bec=False,
    relearn=None,
    compute=ComputeSettings(device="cpu"),
    split=SplitSettings(craft=100),
)
SIGNED = "?X-Amz-Signature=SIGNATUREVALUE"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BDAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(cached, "FIRST_WAIT_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_twin_files(tmp_path_factory.mktemp("served"))
    return {f"/m/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(content: dict[str, bytes]) -> Iterator[FileServer]:
    with serving(FileServer(files=dict(content))) as made:
        yield made


def audit(server: FileServer, **changes: object) -> AuditRecord:
    host = server.url.removeprefix("http://")
    named: dict[str, object] = {
        "original": f"{server.url}/m/original.safetensors",
        "reference": [f"{server.url}/m/innocent.safetensors{SIGNED}"],
        "data": f"{server.url}/m/clean.npz{SIGNED}",
        "trigger": f"{server.url}/m/trigger.toml",
    }
    defended = f"http://USERNAME:PASSWORDVALUE@{host}/m/dormant.safetensors"
    return bdaudit.audit(
        defended,
        **(named | changes),
        model_options=ModelSettings(arch=FACTORY),
        settings=SETTINGS,
        command=["bdaudit", "audit", defended, f"--data={named['data']}", "--data", named["data"]],
    )


def test_files_are_recorded_by_address_and_digest_and_no_secret_stays(
    server: FileServer, cache: Path, content: dict[str, bytes]
) -> None:
    record = audit(server)
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    text = to_json(record)
    for secret in ("SIGNATUREVALUE", "PASSWORDVALUE", "USERNAME", str(cache)):
        assert secret not in text
    by_path = {file.path: file.sha256 for file in record.inputs}
    for name in ("dormant.safetensors", "clean.npz", "trigger.toml", "delta.npy"):
        digest = hashlib.sha256(content[f"/m/{name}"]).hexdigest()
        assert by_path[f"{server.url}/m/{name}"] == digest
    assert record.model_named("defended").path == f"{server.url}/m/dormant.safetensors"
    assert record.data.source == f"{server.url}/m/clean.npz"
    assert record.sources["data"].startswith(f"{server.url}/m/clean.npz#sha256=")
    assert record.command is not None
    assert f"--data={server.url}/m/clean.npz" in record.command


def test_such_a_record_is_verified_from_the_cache_when_the_server_is_gone(
    content: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(FileServer(files=dict(content))) as server:
        record = audit(server)
    path = tmp_path / "result.json"
    path.write_text(to_json(record))
    monkeypatch.setenv("BDAUDIT_OFFLINE", "1")
    made = verify(path, allow_code=True)
    assert made.agrees, made.objections
    assert made.numbers


def test_what_is_wrong_with_a_fetched_file_is_said_by_its_address(
    server: FileServer, cache: Path
) -> None:
    server.files["/m/broken.npz"] = b"no archive"
    with pytest.raises(bdaudit.errors.DataError) as caught:
        audit(server, data=f"{server.url}/m/broken.npz{SIGNED}")
    assert f"{server.url}/m/broken.npz" in str(caught.value)
    assert "SIGNATUREVALUE" not in str(caught.value)
    assert str(cache) not in str(caught.value)
    with pytest.raises(FetchError, match="no such file"):
        audit(server, original=f"{server.url}/m/nowhere.pt")


def test_a_trigger_cannot_reach_out_of_its_folder(server: FileServer) -> None:
    for name in ("../secret.npy", "/etc/passwd"):
        server.files["/m/evil.toml"] = server.files["/m/trigger.toml"].replace(
            b"delta.npy", name.encode()
        )
        with pytest.raises((FetchError, TriggerError), match="own folder"):
            audit(server, trigger=f"{server.url}/m/evil.toml")
    server.files["/m/paired.toml"] = (
        b'kind = "paired"\n[target]\nlabel = 0\n[paired]\nfolder = "x"\n'
    )
    with pytest.raises(TriggerError, match="cannot be fetched"):
        audit(server, trigger=f"{server.url}/m/paired.toml")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("http://localhost:8080/v2/models/NAME", True),
        ("https://host/v2/models/NAME/versions/1", True),
        ("https://host/models/defended.safetensors", False),
        ("https://host/models/defended.onnx#sha256=" + "0" * 64, True),
        ("https://host/models/defended.onnx?sig=x", True),
        ("s3://bucket/v2/models/defended.pt", False),
        ("hf://org/repo/model.safetensors@v1", False),
    ],
)
def test_an_endpoint_is_told_from_a_file(source: str, asked: bool) -> None:
    assert can_only_be_asked(parse_model(source)) is asked
    assert default_modes(parse_model(source)) == (("query",) if asked else ("white",))


def test_every_command_takes_addresses(server: FileServer, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        return result.exit_code, result.output

    at = f"{server.url}/m"
    shared = ["--data", f"{at}/clean.npz", "--trigger", f"{at}/trigger.toml"]
    code, output = run(
        "audit", f"{at}/removed.safetensors", "--original", f"{at}/original.safetensors", *shared,
        "--reference", f"{at}/innocent.safetensors", "--arch", FACTORY, "--craft", 100,
        "--passes", 8, "--eps", 0.05, "--stand-ins", 0, "--json", tmp_path / "r.json", "--quiet",
    )  # fmt: skip
    assert code == 0, output
    read_record(tmp_path / "r.json")
    code, output = run("inspect", f"{at}/removed.safetensors")
    assert code == 0, output
    code, output = run(
        "trigger", "preview", f"{at}/trigger.toml", *shared[:2], "--out", tmp_path / "p.png"
    )
    assert code == 0, output
    code, output = run(
        "score", f"{at}/removed.safetensors", "--original", f"{at}/original.safetensors", *shared,
        "--reference", f"{at}/innocent.safetensors", "--arch", FACTORY,
    )  # fmt: skip
    assert code == 0, output
    code, output = run(
        "reactivate", f"{at}/dormant.safetensors", *shared, "--arch", FACTORY, "--eps", 0.05
    )
    assert code == 0, output
    (tmp_path / "o.pt").touch()
    code, output = run(
        "audit", "--endpoint", f"{at}/removed.safetensors", "--original", tmp_path / "o.pt", *shared
    )
    assert code == 2
    assert "/v2/models/NAME" in output
