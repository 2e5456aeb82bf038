"""The cache: one folder a URL, a file in it that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from bdaudit.errors import FetchError, InputError, reading
from bdaudit.fetching.sources import BrokenStreamError, Source, Stream, open_source
from bdaudit.fetching.urls import HUB, Address, parse_url
from bdaudit.foundation.cache import cache_folder
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import MODEL_BYTES, is_file, read_bytes
from bdaudit.foundation.progress import Listener, Progress, Steps, finish
from bdaudit.foundation.texts import read_json, read_text
from bdaudit.foundation.writing import write_atomically

try:
    import fcntl
except ImportError:  # not on Windows; two processes that fetch one file then fetch it twice
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "MAX_BYTES_VARIABLE",
    "OFFLINE_VARIABLE",
    "fetch",
    "fetch_beside",
    "fetch_steps",
    "most_bytes",
    "told_to_stay_offline",
]

OFFLINE_VARIABLE = "BDAUDIT_OFFLINE"
MAX_BYTES_VARIABLE = "BDAUDIT_MAX_DOWNLOAD"
_MAX_BYTES = 16 << 30
TRIES = 5
FIRST_WAIT_S = 0.5
_PROGRESS_EVERY = 8 << 20

SLOWEST_BYTES_PER_S = 1024
"""A transfer slower than this over all of its `PATIENCE_S` seconds is given up."""
PATIENCE_S = 60.0
TIME_LIMIT_S = 24 * 3600.0
"""How long fetching one file may take, all tries together, in seconds."""


def fetch(url: str, listener: Listener | None = None) -> Path:
    """Return a local copy of the file at `url`; as `fetch_steps`, run to the end."""
    return finish(fetch_steps(url), listener)


def fetch_steps(url: str) -> Steps[Path]:
    """Fetch a file into the cache, unless it is there.

    A copy whose digest is the one that `#sha256=` demands is taken without asking the server.
    Otherwise the server is asked whether the file changed. A transfer that breaks off goes on
    where it stopped, in this run or the next. Under $BDAUDIT_OFFLINE only the cache is used.

    Args:
        url: `https://`, `s3://`, `gs://`, `hf://org/repo/file@revision`, ..., with `#sha256=...`
            where the content is to be checked.

    Returns:
        A path in the cache; the file keeps its name, so that its kind can be told.

    Raises:
        FetchError: It cannot be had, is larger than $BDAUDIT_MAX_DOWNLOAD bytes (16 GiB), or does
            not have the digest. No message shows a user, password or signed query.
    """
    address = parse_url(url)
    # Inside, an address that is no address and a header of a million digits may raise anything.
    with reading(address.public, FetchError):
        return (yield from _fetch(address))


def _fetch(address: Address) -> Steps[Path]:
    slot = _Slot.of(address)
    with slot.locked():
        copy = slot.copy()
        if copy is not None and address.sha256 == copy.sha256:
            return slot.path
        if told_to_stay_offline(address.scheme):
            return _from_cache_alone(address, slot, copy)
        source = open_source(address)
        if copy is not None and address.sha256 is None and copy.tag is not None:
            tag = source.tag()
            if tag == copy.tag:
                return slot.path
        yield from _transfer(address, slot, source)
    return slot.path


def fetch_beside(url: str, name: str) -> Steps[Path]:
    """Fetch the file called `name` from the folder of the file at `url`, and put it beside it.

    Raises:
        FetchError: As for `fetch_steps`, or `name` leads out of that folder.
    """
    address = parse_url(url)
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise FetchError(f"{address.public}: names {name!r}, which is not in its own folder")
    split = urlsplit(address.url)
    folder = split.path.rpartition("/")[0]
    beside = urlunsplit((split.scheme, split.netloc, f"{folder}/{quote(name)}", split.query, ""))
    copy = yield from fetch_steps(beside)
    target = _Slot.of(address).folder / name
    if not target.resolve().is_relative_to(_Slot.of(address).folder.resolve()):
        raise FetchError(f"{address.public}: names {name!r}, which is not in its own folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, read_bytes(copy, limit=MODEL_BYTES, what="a copy"))
    return target


@dataclass(frozen=True)
class _Copy:
    """What is known of a copy: the digest it was stored with, and the server's tag."""

    sha256: str
    tag: str | None


@dataclass(frozen=True)
class _Slot:
    """The place of one file in the cache."""

    folder: Path
    name: str

    @classmethod
    def of(cls, address: Address) -> _Slot:
        key = hashlib.sha256(address.key.encode()).hexdigest()
        return cls(cache_folder() / "files" / key, address.name)

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def part(self) -> Path:
        return self.folder / f".{self.name}.part"

    @property
    def part_tag(self) -> Path:
        return self.folder / f".{self.name}.part.tag"

    @property
    def facts(self) -> Path:
        return self.folder / f".{self.name}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time fetch this file."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise FetchError(
                f"{self.folder}: the cache cannot be written: {error.strerror or error}; set "
                "$BDAUDIT_CACHE to another folder"
            ) from error
        with lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def copy(self) -> _Copy | None:
        """Return what is known of the copy; one without its own digest is thrown away."""
        if not (is_file(self.path) and is_file(self.facts)):
            return None
        try:
            facts = read_json(self.facts, what="what is known of a copy")
            copy = _Copy(sha256=str(facts["sha256"]), tag=facts["tag"])
        except (InputError, KeyError, TypeError):
            return None
        if digest_file(self.path) != copy.sha256:
            self.path.unlink()
            return None
        return copy

    def keep(self, address: Address, sha256: str, tag: str | None) -> None:
        """Move the finished part to its place."""
        # Should this be cut short in between, the digests differ and the file is fetched again.
        self.part.replace(self.path)
        facts = {"url": address.public, "sha256": sha256, "tag": tag}
        write_atomically(self.facts, json.dumps(facts, indent=1).encode())
        self.part_tag.unlink(missing_ok=True)

    def drop_part(self) -> None:
        self.part.unlink(missing_ok=True)
        self.part_tag.unlink(missing_ok=True)

    def part_state(self) -> tuple[int, str | None]:
        """Return how much of the file is there, and the tag of what it is a part of."""
        if not (is_file(self.part) and is_file(self.part_tag)):
            self.drop_part()
            return 0, None
        return self.part.stat().st_size, read_text(self.part_tag, what="a tag")


def told_to_stay_offline(scheme: str) -> bool:
    """Whether the environment says that nothing is to be fetched by that protocol."""
    names = [OFFLINE_VARIABLE, *(["HF_HUB_OFFLINE"] if scheme == HUB else [])]
    return any(os.environ.get(name, "") not in ("", "0") for name in names)


def _from_cache_alone(address: Address, slot: _Slot, copy: _Copy | None) -> Path:
    if copy is None:
        raise FetchError(f"{address.public}: is not in the cache, and ${OFFLINE_VARIABLE} is set")
    if address.sha256 is not None:
        raise FetchError(
            f"{address.public}: the copy in the cache has sha256 {copy.sha256}, expected "
            f"{address.sha256}, and ${OFFLINE_VARIABLE} is set"
        )
    return slot.path


def _transfer(address: Address, slot: _Slot, source: Source) -> Steps[None]:
    """Bring the file into its place, over as many breaks as it takes."""
    trouble = ""
    fruitless = 0
    give_up_at = time.monotonic() + TIME_LIMIT_S
    while fruitless < TRIES and time.monotonic() < give_up_at:
        start, tag = slot.part_state()
        try:
            with source.read(start, tag) as stream:
                yield from _store(address, slot, stream, give_up_at)
                _check(address, slot)
                slot.keep(address, digest_file(slot.part), stream.tag)
                return
        except BrokenStreamError as error:
            trouble = str(error)
        except OSError as error:
            raise FetchError(f"{slot.folder}: {error.strerror or error}") from error
        fruitless = 0 if slot.part_state()[0] > start else fruitless + 1
        if fruitless:
            yield Progress(f"fetching {address.public}", 0, 1, f"{trouble}, trying again")
            time.sleep(FIRST_WAIT_S * 2 ** (fruitless - 1))
    raise FetchError(
        f"{address.public}: cannot be fetched: {trouble}; what has arrived is kept, and the next "
        "run continues from there"
    )


def _store(address: Address, slot: _Slot, stream: Stream, give_up_at: float) -> Steps[None]:
    """Write the bytes of one answer after what is there already."""
    limit = most_bytes()
    done = stream.start
    _check_room(address, slot, stream, limit)
    if stream.tag is None:
        slot.drop_part()
    else:
        write_atomically(slot.part_tag, stream.tag.encode(errors="replace"))
    title = f"fetching {address.public}"
    shown = done
    with slot.part.open("r+b" if done and slot.part.is_file() else "wb") as file:
        file.truncate(done)
        file.seek(done)
        yield Progress(title, done, stream.size or max(done, 1))
        looked_at, then = time.monotonic(), done
        for chunk in stream.chunks:
            done += len(chunk)
            if time.monotonic() > give_up_at:
                raise FetchError(
                    f"{address.public}: took longer than {TIME_LIMIT_S / 3600:g} hours"
                )
            waited = time.monotonic() - looked_at
            if waited > PATIENCE_S:
                # The file may come in a drop at a time, which no timeout of a single read ends.
                if done - then < SLOWEST_BYTES_PER_S * waited:
                    raise FetchError(
                        f"{address.public}: {done - then} bytes came in {waited:.0f} s, which is "
                        "too slow; what has arrived is kept, and the next run continues from there"
                    )
                looked_at, then = time.monotonic(), done
            if done > limit:
                file.close()
                slot.drop_part()
                raise FetchError(_too_large(address, limit))
            file.write(chunk)
            if done - shown >= _PROGRESS_EVERY:
                shown = done
                yield Progress(title, done, stream.size or done, f"{done >> 20} MiB")
    if stream.size is not None and done != stream.size:
        if done > stream.size:
            slot.drop_part()
        raise BrokenStreamError(f"{done} of {stream.size} bytes arrived")


def _check_room(address: Address, slot: _Slot, stream: Stream, limit: int) -> None:
    if stream.size is None:
        return
    if stream.size > limit:
        raise FetchError(_too_large(address, limit))
    free = shutil.disk_usage(slot.folder).free
    if stream.size - stream.start > free:
        raise FetchError(
            f"{address.public}: {stream.size:,} bytes, and {free:,} are free in {slot.folder}; set "
            "$BDAUDIT_CACHE to a larger disk"
        )


def _check(address: Address, slot: _Slot) -> None:
    """Compare what arrived with the digest that is demanded; what is wrong is not kept."""
    if address.sha256 is None:
        return
    found = digest_file(slot.part)
    if found != address.sha256:
        slot.drop_part()
        raise FetchError(
            f"{address.public}: expected sha256 {address.sha256}, got {found}; nothing was kept"
        )


def most_bytes() -> int:
    """Return the most bytes that are fetched of one file or model.

    Raises:
        FetchError: The environment says something else than a number.
    """
    text = os.environ.get(MAX_BYTES_VARIABLE, "")
    if not text:
        return _MAX_BYTES
    if not re.fullmatch("[0-9]{1,18}", text):
        raise FetchError(f"${MAX_BYTES_VARIABLE}: expected a number of bytes, got {text!r}")
    return int(text)


def _too_large(address: Address, limit: int) -> str:
    return (
        f"{address.public}: is larger than {limit:,} bytes; set ${MAX_BYTES_VARIABLE} if that is "
        "meant"
    )
