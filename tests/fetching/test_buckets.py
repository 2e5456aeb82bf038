"""Files from a real S3 server on loopback, and from a stand-in of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import huggingface_hub.constants
import pytest
from moto.server import ThreadedMotoServer

from bdaudit.errors import FetchError
from bdaudit.fetching import cached, fetch
from bdaudit.fetching.sources import BrokenStreamError, Stream, open_source
from bdaudit.fetching.urls import parse_url
from tests.fetching.server import FileServer, serving

CONTENT = bytes(range(256)) * 40_000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BDAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "FIRST_WAIT_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "loopback-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "loopback-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="dir/model.pt", Body=CONTENT)
    return client


def test_a_file_in_a_bucket(bucket: object) -> None:
    path = fetch("s3://models/dir/model.pt")
    assert path.name == "model.pt"
    assert path.read_bytes() == CONTENT
    assert fetch("s3://models/dir/model.pt") == path
    bucket.put_object(Bucket="models", Key="dir/model.pt", Body=b"changed")
    assert fetch("s3://models/dir/model.pt").read_bytes() == b"changed"


def test_a_digest_is_checked_there_too(bucket: object) -> None:
    assert fetch(f"s3://models/dir/model.pt#sha256={SHA}").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="expected sha256 0000"):
        fetch(f"s3://models/dir/model.pt#sha256={'0' * 64}")


def test_what_is_not_there_says_so_without_keys(
    bucket: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchError, match="no such file") as caught:
        fetch("s3://models/dir/nowhere.pt")
    assert "loopback" not in str(caught.value)
    with pytest.raises(FetchError, match=r"is a folder|no such file"):
        fetch("s3://models/dir")


def test_a_bucket_transfer_goes_on_where_it_stopped(
    bucket: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks once in the middle of a real answer."""
    starts = []
    real = cached.open_source

    def breaking(address: object) -> object:
        source = real(address)
        read = source.read

        class Breaking:
            tag = source.tag

            @staticmethod
            def read(start: int, tag: str | None) -> object:
                starts.append(start)
                return broken(read(start, tag), after=3 if len(starts) == 1 else None)

        return Breaking()

    monkeypatch.setattr(cached, "open_source", breaking)
    assert fetch(f"s3://models/dir/model.pt#sha256={SHA}").read_bytes() == CONTENT
    assert starts == [0, 3 << 20]


class broken:
    """A stream that breaks after some chunks."""

    def __init__(self, inner: object, *, after: int | None) -> None:
        self.inner, self.after = inner, after

    def __enter__(self) -> Stream:
        stream = self.inner.__enter__()

        def some(chunks: Iterator[bytes]) -> Iterator[bytes]:
            for k, chunk in enumerate(chunks):
                if k == self.after:
                    raise BrokenStreamError("cut")
                yield chunk

        return Stream(stream.start, stream.size, stream.tag, some(stream.chunks))

    def __exit__(self, *error: object) -> object:
        return self.inner.__exit__(*error)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving(FileServer()) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setenv("HF_TOKEN", "hf_secrettoken")
        yield server


def test_a_file_of_the_hub_at_a_revision(hub: FileServer) -> None:
    """The address is huggingface_hub's own, the token its own too; only the host is loopback."""
    hub.files = {
        "/org/repo/resolve/v1/dir/model.pt": b"one",
        "/org/repo/resolve/main/model.pt": b"two",
        "/datasets/org/repo/resolve/v2/clean.npz": b"three",
    }
    assert fetch("hf://org/repo/dir/model.pt@v1").read_bytes() == b"one"
    assert fetch("hf://org/repo@v1/dir/model.pt").read_bytes() == b"one"
    assert fetch("hf://org/repo/model.pt").read_bytes() == b"two"
    assert fetch("hf://datasets/org/repo/clean.npz@v2").read_bytes() == b"three"
    assert hub.requests[0][2]["Authorization"] == "Bearer hf_secrettoken"


def test_the_token_does_not_follow_to_the_storage(hub: FileServer, cache: Path) -> None:
    with serving(FileServer(files={"/blob": b"from storage"})) as storage:
        hub.redirects["/org/repo/resolve/main/model.pt"] = f"{storage.url}/blob"
        assert fetch("hf://org/repo/model.pt").read_bytes() == b"from storage"
        assert all("Authorization" not in headers for _, _, headers in storage.requests)
    assert not any(b"secrettoken" in p.read_bytes() for p in cache.rglob("*") if p.is_file())


def test_the_hubs_own_offline_switch_is_honoured(
    hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["/org/repo/resolve/main/model.pt"] = b"x"
    fetch("hf://org/repo/model.pt")
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("hf://org/repo/model.pt").read_bytes() == b"x"
    assert len(hub.requests) == asked


@pytest.mark.parametrize("url", ["hf://org/model.pt", "hf://org/repo/a@b@c"])
def test_an_incomplete_hub_address_is_explained(url: str) -> None:
    with pytest.raises(FetchError, match="ORGANISATION/REPOSITORY/FILE@REVISION"):
        open_source(parse_url(url))
