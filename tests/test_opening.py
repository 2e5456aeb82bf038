"""Opening a file: whatever lies there, an InputError that says so, and never a wait."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bdaudit.errors import InputError, PolicyError
from bdaudit.foundation import opening
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import (
    check_file,
    in_bytes,
    is_file,
    is_folder,
    open_file,
    path_inside,
    read_bytes,
    shown,
)


def read(path: str | Path, limit: int = 1000, **rest: object) -> bytes:
    return read_bytes(path, limit=limit, what="a policy", error=PolicyError, **rest)  # type: ignore[arg-type]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.txt"
    path.write_bytes(b"0123456789")
    return path


def test_a_regular_file_is_read_whole(plain: Path) -> None:
    assert read(plain) == b"0123456789"
    assert read(str(plain), limit=10) == b"0123456789"
    assert check_file(plain, limit=10, what="x") == 10
    assert digest_file(plain) == hashlib.sha256(b"0123456789").hexdigest()


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read(tmp_path / "empty", limit=0) == b""


def test_a_stream_can_be_sought_and_handed_to_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    with open_file(tmp_path / "a.npy", limit=1000, what="an array") as stream:
        assert np.load(stream).tolist() == [[0, 1, 2], [3, 4, 5]]
        stream.seek(1)
        assert stream.read(5) == b"NUMPY"
        stream.seek(0, os.SEEK_END)
        assert stream.read() == b""


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "full"])
def test_what_is_no_regular_file_is_named_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may not be long
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("odd")
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero" if kind == "device" else "/dev/full")
    started = time.monotonic()
    named = "device" if kind == "full" else kind
    for call in (read, lambda path: digest_file(path, error=PolicyError)):
        with pytest.raises(PolicyError, match=f"a regular file, got a {named}"):
            call(path)
    assert time.monotonic() - started < 2
    assert not is_file(path)
    assert is_folder(path) == (kind == "folder")


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plain.stat()
    plain.unlink()
    os.mkfifo(plain)
    monkeypatch.setattr(Path, "stat", lambda path: before)
    with pytest.raises(PolicyError, match="got a pipe"):
        read(plain)


def test_a_missing_file_is_told_with_the_name_that_is_near_it(tmp_path: Path) -> None:
    (tmp_path / "removed.safetensors").write_bytes(b"x")
    for name, hint in (
        ("removed.safetensor", f"did you mean {tmp_path}/removed.safetensors?"),
        ("Removed.safetensors", "did you mean"),
        ("nothing.like", ""),
        ("no-folder/removed.safetensors", ""),
    ):
        with pytest.raises(PolicyError, match="No such file") as caught:
            read(tmp_path / name)
        assert ("did you mean" in str(caught.value)) == bool(hint)
        assert hint in str(caught.value)


def test_a_link_to_a_device_is_followed_and_refused(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(PolicyError, match="got a device"):
        read(tmp_path / "zero")


def test_a_file_over_the_limit_is_refused_unread(plain: Path) -> None:
    with pytest.raises(PolicyError, match="a policy of at most 9 bytes, got 10 bytes"):
        read(plain, limit=9)


def test_the_holes_of_a_sparse_file_count(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(2 << 30)
    with pytest.raises(PolicyError, match="at most 1 MiB, got 2 GiB"):
        read(path, limit=1 << 20)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", "NUL"),
        ("a\udcff", "not valid UTF-8"),
        ("a" * 5000, r"name is too long \(5\d\d\d characters\)"),
        ("missing", "No such file"),
        ("plain.txt/below", "Not a directory"),
        ("loop", "links lead in a ring"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_name_that_is_no_name_is_an_error_of_ours(
    name: str, reason: str, inside: bool, plain: Path
) -> None:
    (plain.parent / "loop").symlink_to("loop")
    within = {"within": plain.parent} if inside else {}
    with pytest.raises(PolicyError, match=reason) as caught:
        read(plain.parent / name, **within)
    assert len(str(caught.value)) < 500
    assert not is_file(plain.parent / name)
    assert not is_folder(plain.parent / name)


def test_a_file_that_may_not_be_read_says_so(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # whoever runs this as root may read everything
    with pytest.raises(PolicyError, match=r"plain\.txt: expected a policy: Permission denied"):
        read(plain)


def test_a_link_may_not_lead_out_of_its_folder(plain: Path) -> None:
    folder = plain.parent / "inner"
    folder.mkdir()
    (folder / "kept.txt").write_bytes(b"in")
    (folder / "out").symlink_to(plain)
    (folder / "in").symlink_to("kept.txt")
    (folder / "up").symlink_to("..")
    assert read(folder / "in", within=folder) == b"in"
    assert read(folder / "out") == b"0123456789"  # the user's own path: links are followed
    for name in ("out", "up/plain.txt", "../plain.txt"):
        with pytest.raises(PolicyError, match="leads out of"):
            read(folder / name, within=folder)


def test_a_folder_reached_over_a_link_is_itself(plain: Path) -> None:
    (plain.parent / "way").symlink_to(plain.parent)
    assert read(plain.parent / "way/plain.txt", within=plain.parent) == b"0123456789"
    assert read(plain, within=plain.parent / "way") == b"0123456789"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../plain.txt", "a/../../plain.txt", "/etc/hosts", "C:\\x", "C:x"]
)
def test_a_name_inside_a_file_may_not_lead_out(name: str, plain: Path) -> None:
    with pytest.raises(PolicyError, match="outside the folder"):
        path_inside(plain.parent, name, what="a picture", error=PolicyError)


@pytest.mark.parametrize("name", ["a\0b", "a\udcff", "out"])
def test_a_name_inside_a_file_may_be_broken(name: str, plain: Path) -> None:
    (plain.parent / "out").symlink_to("/etc")
    with pytest.raises(PolicyError):
        path_inside(plain.parent, name, what="a picture", error=PolicyError)


def test_a_name_inside_a_file_is_followed(plain: Path) -> None:
    found = path_inside(plain.parent, "plain.txt", what="a picture")
    assert found == plain
    assert path_inside(plain.parent, "x/new.png", what="a picture") == plain.parent / "x/new.png"


def test_what_is_written_on_meanwhile_is_not_read(plain: Path) -> None:
    with open_file(plain, limit=1000, what="x") as stream:
        with plain.open("ab") as growing:
            growing.write(b"abc" * 1_000_000)
        assert stream.read() == b"0123456789"
        stream.seek(5)
        assert stream.read(100) == b"56789"


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(3 << 20))
    with open_file(path, limit=1 << 30, what="x", error=PolicyError) as stream:
        stream.read(10)
        os.truncate(path, 100)
        with pytest.raises(PolicyError, match="became shorter"):
            stream.read()


def test_the_system_may_give_less_at_a_time(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trickling(opening.BoundedFile.__mro__[1]):  # type: ignore[name-defined, misc]
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 3))

    short = type("Short", (opening.BoundedFile, Trickling), {})
    monkeypatch.setattr(opening, "BoundedFile", short)
    assert read(plain) == b"0123456789"


def test_an_endless_file_of_no_size_ends_at_its_size() -> None:
    path = Path("/proc/self/environ")
    if not path.exists():  # only Linux has such files: regular, of size 0 and with content
        return
    assert read(path) == b""


def test_a_file_may_not_take_for_ever(plain: Path) -> None:
    with pytest.raises(PolicyError, match="took too long"):
        read(plain, time_limit_s=-1.0)


def test_no_descriptor_is_left_open(plain: Path) -> None:
    folder = Path("/dev/fd")
    before = len(list(folder.iterdir()))
    for _ in range(5):
        with pytest.raises(PolicyError):
            read(plain, limit=1)
        with pytest.raises(PolicyError):
            read(plain.parent)
        read(plain)
    assert len(list(folder.iterdir())) == before


def test_pipes_do_not_wait_even_with_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: os.close(os.open(path, os.O_RDWR)))
    writer.start()
    with pytest.raises(InputError, match="got a pipe"):
        check_file(path, limit=10, what="x")
    writer.join()


def test_the_docs_state_the_limits() -> None:
    table = (Path(__file__).parents[1] / "docs/limits.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+_BYTES)` \|.*\| ([\d.]+ [KMG]iB) \|$", table, re.MULTILINE))
    constants = {
        name: in_bytes(getattr(opening, name)) for name in opening.__all__ if "_BYTES" in name
    }
    assert stated == constants
    assert f"{opening.TIME_LIMIT_S / 60:g} minutes" in table


def test_words_for_messages() -> None:
    assert [in_bytes(n) for n in (0, 512, 1 << 20, 5 << 29, 1 << 44)] == [
        "0 bytes", "512 bytes", "1 MiB", "2.5 GiB", "16 TiB",
    ]  # fmt: skip
    assert shown("a/b") == "a/b"
    assert len(shown("a" * 100_000)) == 301
