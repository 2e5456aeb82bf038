"""Files over a real HTTP server on loopback, into a real cache."""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from bdaudit.errors import FetchError
from bdaudit.fetching import cached, fetch, fetch_beside, fetch_steps
from bdaudit.foundation.progress import finish
from tests.fetching.server import FileServer, serving

CONTENT = bytes(range(256)) * 40_000  # 10 MB: several chunks
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BDAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(cached, "FIRST_WAIT_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer(files={"/a/model.pt": CONTENT})) as made:
        yield made


def test_a_file_arrives_under_its_own_name(server: FileServer, cache: Path) -> None:
    path = fetch(f"{server.url}/a/model.pt")
    assert path.name == "model.pt"
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)


def test_a_copy_is_used_again_after_asking_whether_it_changed(server: FileServer) -> None:
    first = fetch(f"{server.url}/a/model.pt")
    assert fetch(f"{server.url}/a/model.pt") == first
    assert (server.asked("GET"), server.asked("HEAD")) == (1, 1)
    server.files["/a/model.pt"] = b"changed"
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == b"changed"


def test_without_tags_nobody_can_know_and_it_is_fetched_again(server: FileServer) -> None:
    server.tags = False
    fetch(f"{server.url}/a/model.pt")
    fetch(f"{server.url}/a/model.pt")
    assert server.asked("GET") == 2


def test_a_pinned_copy_needs_no_server(server: FileServer) -> None:
    url = f"{server.url}/a/model.pt#sha256={SHA.upper()}"
    fetch(url)
    asked = len(server.requests)
    assert fetch(url).read_bytes() == CONTENT
    assert len(server.requests) == asked


def test_what_is_not_what_was_pinned_is_refused_and_not_kept(
    server: FileServer, cache: Path
) -> None:
    wrong = "0" * 64
    with pytest.raises(FetchError, match=f"expected sha256 {wrong}, got {SHA}"):
        fetch(f"{server.url}/a/model.pt#sha256={wrong}")
    assert not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size > 100]
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT


def test_a_broken_transfer_goes_on_where_it_stopped(server: FileServer) -> None:
    server.cuts = [3_000_000, 2_000_000]
    assert fetch(f"{server.url}/a/model.pt#sha256={SHA}").read_bytes() == CONTENT
    assert server.sent == len(CONTENT), "no byte was sent twice"
    ranges = [headers["Range"] for _, _, headers in server.requests if "Range" in headers]
    assert ranges == ["bytes=3000000-", "bytes=5000000-"]


def test_the_next_run_goes_on_too(server: FileServer, cache: Path) -> None:
    server.cuts = [1_000_000] + [0] * 5
    with pytest.raises(FetchError, match="the next run continues from there"):
        fetch(f"{server.url}/a/model.pt")
    assert not list(cache.rglob("model.pt")), "half a file is never found under its name"
    server.cuts = []
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_run_that_is_killed_leaves_a_part_to_go_on_from(server: FileServer, cache: Path) -> None:
    steps = fetch_steps(f"{server.url}/a/model.pt")
    next(steps)
    next(steps)
    steps.close()
    assert not list(cache.rglob("model.pt"))
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_pieced_together(server: FileServer) -> None:
    server.cuts = [1_000_000] + [0] * 5
    with pytest.raises(FetchError):
        fetch(f"{server.url}/a/model.pt")
    server.files["/a/model.pt"] = b"z" * 2_000_000
    server.cuts = []
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == b"z" * 2_000_000


def test_without_ranges_it_starts_anew(server: FileServer) -> None:
    server.ranges = False
    server.cuts = [3_000_000]
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: FileServer) -> None:
    server.statuses = [503, 429]
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT
    server.statuses = [500] * 9
    server.tags = False
    with pytest.raises(FetchError, match="status 500"):
        fetch(f"{server.url}/a/model.pt")


@pytest.mark.parametrize("lengths", [True, False])
def test_the_size_is_limited_whatever_the_server_says(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch, lengths: bool
) -> None:
    server.lengths = lengths
    monkeypatch.setenv("BDAUDIT_MAX_DOWNLOAD", "5000000")
    with pytest.raises(FetchError, match="larger than 5,000,000 bytes"):
        fetch(f"{server.url}/a/model.pt")
    assert not [p for p in cache.rglob("*") if p.is_file() and p.stat().st_size > 100]
    monkeypatch.setenv("BDAUDIT_MAX_DOWNLOAD", "many")
    with pytest.raises(FetchError, match="number of bytes"):
        fetch(f"{server.url}/a/model.pt")


def test_a_damaged_copy_is_fetched_again(server: FileServer) -> None:
    url = f"{server.url}/a/model.pt#sha256={SHA}"
    path = fetch(url)
    path.write_bytes(b"bit rot")
    assert fetch(url).read_bytes() == CONTENT


def test_offline_only_the_cache_is_used(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(f"{server.url}/a/model.pt")
    asked = len(server.requests)
    monkeypatch.setenv("BDAUDIT_OFFLINE", "1")
    assert fetch(f"{server.url}/a/model.pt").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="not in the cache"):
        fetch(f"{server.url}/a/other.pt")
    with pytest.raises(FetchError, match="the copy in the cache has sha256"):
        fetch(f"{server.url}/a/model.pt#sha256={'0' * 64}")
    assert len(server.requests) == asked


def test_a_server_that_is_gone_is_said_and_an_old_copy_is_not_passed_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(FileServer(files={"/m.pt": b"old"})) as server:
        url = f"{server.url}/m.pt"
        fetch(url)
    with pytest.raises(FetchError, match="ConnectError"):
        fetch(url)
    monkeypatch.setenv("BDAUDIT_OFFLINE", "1")
    assert fetch(url).read_bytes() == b"old"


def test_credentials_in_the_address_or_netrc_are_used_and_never_shown(
    server: FileServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.user = "ann:s3cret%"
    with pytest.raises(FetchError, match=r"401.*netrc"):
        fetch(f"{server.url}/a/model.pt")
    host = server.url.removeprefix("http://")
    assert fetch(f"http://ann:s3cret%25@{host}/a/model.pt").read_bytes() == CONTENT
    with pytest.raises(FetchError) as caught:
        fetch(f"http://ann:s3cret%25@{host}/a/nowhere.pt?token=t0ken")
    assert "s3cret" not in str(caught.value)
    assert "t0ken" not in str(caught.value)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ann password s3cret%\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.files["/a/second.pt"] = b"x"
    assert fetch(f"{server.url}/a/second.pt").read_bytes() == b"x"
    kept = b"".join(p.read_bytes() for p in cache.rglob(".*.json"))
    assert b"s3cret" not in kept
    assert not any("s3cret" in str(p) for p in cache.rglob("*"))


def test_signed_queries_reach_the_server_and_nothing_else(
    server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        first = fetch(f"{server.url}/a/model.pt?X-Amz-Signature=abc123&X-Amz-Expires=9")
        again = fetch(f"{server.url}/a/model.pt?X-Amz-Signature=def456&X-Amz-Expires=9")
    assert "X-Amz-Signature=abc123" in server.requests[0][1]
    assert first == again, "another signature is the same file"
    assert server.asked("GET") == 1
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("httpx"))
    assert "abc123" not in logged
    assert not any(b"abc123" in p.read_bytes() for p in cache.rglob(".*.json"))


def test_other_queries_are_other_files(server: FileServer) -> None:
    assert fetch(f"{server.url}/a/model.pt?v=1") != fetch(f"{server.url}/a/model.pt?v=2")


def test_a_redirect_is_followed_without_the_credentials(server: FileServer) -> None:
    server.user = "ann:secret"
    with serving(FileServer(files={"/there.pt": b"elsewhere"})) as other:
        server.redirects["/a/moved.pt"] = f"{other.url}/there.pt"
        host = server.url.removeprefix("http://")
        assert fetch(f"http://ann:secret@{host}/a/moved.pt").read_bytes() == b"elsewhere"
        assert all("Authorization" not in headers for _, _, headers in other.requests)
    server.redirects["/a/round.pt"] = "/a/round.pt"
    with pytest.raises(FetchError, match="circles"):
        fetch(f"http://ann:secret@{host}/a/round.pt")
    server.redirects["/a/file.pt"] = "file:///etc/passwd"
    with pytest.raises(FetchError, match="not HTTP"):
        fetch(f"http://ann:secret@{host}/a/file.pt")


def test_https_is_verified_and_does_not_lead_to_http(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    told = FileServer(files={"/m.pt": CONTENT}, redirects={"/down.pt": f"{server.url}/a/model.pt"})
    with serving(told, context) as secure:
        with pytest.raises(FetchError, match="ConnectError"):
            fetch(f"{secure.url}/m.pt")
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert fetch(f"{secure.url}/m.pt").read_bytes() == CONTENT
        with pytest.raises(FetchError, match="from https to http"):
            fetch(f"{secure.url}/down.pt")
    assert server.requests == []


def test_a_cache_that_cannot_be_written_is_said(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BDAUDIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="BDAUDIT_CACHE"):
        fetch(f"{server.url}/a/model.pt")


def test_several_at_once_fetch_once(server: FileServer) -> None:
    found: list[bytes] = []

    def run() -> None:
        found.append(fetch(f"{server.url}/a/model.pt").read_bytes())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert server.asked("GET") == 1


def test_files_beside_come_beside(server: FileServer) -> None:
    server.files |= {"/a/t.toml": b"x", "/a/sub/delta.npy": b"d"}
    trigger = fetch(f"{server.url}/a/t.toml")
    delta = finish(fetch_beside(f"{server.url}/a/t.toml", "sub/delta.npy"))
    assert delta == trigger.parent / "sub" / "delta.npy"
    assert delta.read_bytes() == b"d"
    for name in ("../model.pt", "/etc/passwd", "a//b", "..\\x"):
        with pytest.raises(FetchError, match="own folder"):
            finish(fetch_beside(f"{server.url}/a/t.toml", name))
