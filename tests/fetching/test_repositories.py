"""Whole models of the hub: from its library's own cache, from a server, and never half."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest

from bdaudit.errors import FetchError
from bdaudit.fetching import fetch_repository, is_repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN_CLIP = {
    "open_clip_config.json": b"{}",
    "open_clip_model.safetensors": b"weights of open_clip",
    "tokenizer.json": b"{}",
}
FILES = {
    "config.json": b'{"model_type": "vit"}',
    "preprocessor_config.json": b"{}",
    "model.safetensors": b"weights" * 10,
    "modeling_evil.py": b"open('canary', 'w')",
    "pytorch_model.bin": b"a pickle",
}


class _Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that its own library asks for a snapshot."""

    asked: list[str] = []  # noqa: RUF012
    files: dict[str, bytes] = FILES

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.partition("?")[0].startswith("/api/models/org/net/revision/"):
            listed = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self._send(json.dumps({"id": "org/net", "sha": COMMIT, "siblings": listed}).encode())
        elif self.path.startswith(f"/org/net/resolve/{COMMIT}/"):
            name = self.path.rpartition("/")[2]
            self._send(self.files[name], tag=hashlib.sha256(self.files[name]).hexdigest())
        elif self.path.partition("?")[0].startswith("/api/models/org/net/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.files.items()
            ]
            self._send(json.dumps(tree).encode())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _send(self, data: bytes, tag: str | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if tag is not None:
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Hub]]:
    _Hub.asked, _Hub.files = [], FILES
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield _Hub
        server.shutdown()


def in_the_cache(folder: Path) -> Path:
    """Lay a model down as huggingface_hub keeps it: a snapshot of links to blobs."""
    model = folder / "models--org--kept"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "refs" / "v1").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        blob = model / "blobs" / hashlib.sha256(FILES[name]).hexdigest()
        blob.write_bytes(FILES[name])
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_what_names_a_whole_model() -> None:
    assert is_repository("hf://org/net")
    assert is_repository("hf://org/net@v1.0")
    assert not is_repository("hf://org/net/model.safetensors@v1")
    assert not is_repository("hf://org/net@v1/model.safetensors")
    assert not is_repository("https://org/net")


def test_only_what_describes_and_holds_a_network_is_fetched(hub: type[_Hub]) -> None:
    folder, address = fetch_repository("hf://org/net@v1")
    assert address == f"hf://org/net@{COMMIT}"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = ("config.json", "preprocessor_config.json", "model.safetensors")
    assert found == {name: FILES[name] for name in wanted}
    assert not any("evil" in path or "pytorch" in path for path in hub.asked)


@pytest.mark.parametrize("beside", [False, True])
def test_weights_of_open_clip_are_fetched_where_there_are_no_others(
    hub: type[_Hub], beside: bool
) -> None:
    hub.files = {**OPEN_CLIP, **(FILES if beside else {})}
    folder, _ = fetch_repository("hf://org/net")
    names = {path.name for path in folder.iterdir()}
    assert ("open_clip_model.safetensors" in names) != beside
    assert ("model.safetensors" in names) == beside
    assert {"open_clip_config.json", "tokenizer.json"} <= names


def test_one_that_is_too_large_is_not_begun(
    hub: type[_Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BDAUDIT_MAX_DOWNLOAD", "50")
    with pytest.raises(FetchError, match=r"has 93 bytes, more than the 50"):
        fetch_repository("hf://org/net")
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_off_line_the_hubs_cache_serves(
    hub: type[_Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = in_the_cache(tmp_path / "hub")
    monkeypatch.setenv("BDAUDIT_OFFLINE", "1")
    assert fetch_repository("hf://org/kept") == (snapshot, f"hf://org/kept@{COMMIT}")
    assert fetch_repository("hf://org/kept@v1") == (snapshot, f"hf://org/kept@{COMMIT}")
    with pytest.raises(FetchError, match=r"hf://org/net: is not in the hub's cache"):
        fetch_repository("hf://org/net")
    assert hub.asked == []


def test_one_that_is_not_there_is_refused(hub: type[_Hub]) -> None:
    with pytest.raises(FetchError, match=r"hf://org/other: cannot be had.*give its folder"):
        fetch_repository("hf://org/other")
