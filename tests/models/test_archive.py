"""Every archive is refused, or means the same to us, to `torch.load` and to a reader of its own."""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdaudit.errors import ModelError
from bdaudit.models import open_checkpoint
from tests.models.checkpoints import same_tensors

SHOWN = {"fc.weight": torch.arange(24.0).reshape(4, 6), "fc.bias": torch.arange(4.0)}
HIDDEN = {"fc.weight": -torch.arange(24.0).reshape(4, 6), "fc.bias": torch.full((4,), 9.0)}


@dataclass
class Part:
    """One entry, with what its local header and the directory say apart."""

    name: str
    data: bytes
    method: int = 0
    stored: bytes | None = None  # what lies in the file, by default the data as the method packs it
    flags: int = 0
    directory_name: str | None = None
    directory: dict[str, int] = dataclasses.field(default_factory=dict)
    local: dict[str, int] = dataclasses.field(default_factory=dict)
    gap: bytes = b""
    at: int | None = None  # the offset that the directory gives, by default the true one
    descriptor: bytes | None = None

    @property
    def packed(self) -> bytes:
        if self.stored is not None:
            return self.stored
        return deflated(self.data) if self.method == 8 else self.data

    def figures(self, changes: dict[str, int]) -> tuple[int, int, int, int]:
        own = {
            "method": self.method,
            "crc": zlib.crc32(self.data),
            "packed": len(self.packed),
            "size": len(self.data),
        }
        own.update(changes)
        return own["method"], own["crc"], own["packed"], own["size"]


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def write(
    parts: list[Part], *, before: bytes = b"", after: bytes = b"", comment: bytes = b""
) -> bytes:
    """Write a zip archive by hand, contradictions and all."""
    content, offsets = before, []
    for part in parts:
        offsets.append(len(content))
        method, crc, packed, size = part.figures(part.local)
        name = part.name.encode()
        content += struct.pack(
            "<4sHHHHHIIIHH",
            b"PK\x03\x04",
            20,
            part.flags,
            method,
            0,
            33,
            crc,
            packed,
            size,
            len(name),
            0,
        )
        content += name + part.packed + (part.descriptor or b"") + part.gap
    start = len(content)
    for part, offset in zip(parts, offsets, strict=True):
        method, crc, packed, size = part.figures(part.directory)
        name = (part.directory_name or part.name).encode()
        content += (
            struct.pack(
                "<4sHHHHHHIIIHHHHHII",
                b"PK\x01\x02",
                20,
                20,
                part.flags,
                method,
                0,
                33,
                crc,
                packed,
                size,
                len(name),
                0,
                0,
                0,
                0,
                0,
                offset if part.at is None else part.at,
            )
            + name
        )
    n, length = len(parts), len(content) - start
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, n, n, length, start, len(comment))
    return content + end + comment + after


def saved(state: dict[str, torch.Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def parts_of(content: bytes) -> list[Part]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    return [Part(name, archive.read(name)) for name in archive.namelist()]


def part(parts: list[Part], ending: str) -> Part:
    return next(p for p in parts if p.name.endswith(ending))


class OtherReader(pickle.Unpickler):
    """Reads a torch archive by Python's own zip reader and unpickler, and numpy."""

    def __init__(self, content: bytes) -> None:
        self.archive = zipfile.ZipFile(io.BytesIO(content))
        (pickled,) = (n for n in self.archive.namelist() if n.endswith("/data.pkl"))
        self.folder = pickled.removesuffix("data.pkl")
        super().__init__(io.BytesIO(self.archive.read(pickled)))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if module == "torch" and name.endswith("Storage"):
            return {"FloatStorage": np.float32, "LongStorage": np.int64}[name]
        return {"OrderedDict": OrderedDict}[name]

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, _ = pid
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), kind)

    @staticmethod
    def rebuild(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        steps = [step * storage.itemsize for step in stride]
        return torch.from_numpy(
            np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()
        )


def read_by_all(path: Path, content: bytes) -> dict[str, torch.Tensor] | None:
    """Return what we read, after holding it against two other readers; `None` where we refuse."""
    path.write_bytes(content)
    try:
        found = open_checkpoint(path).tensors
    except ModelError:
        return None
    assert same_tensors(found, dict(OtherReader(content).load()))
    assert same_tensors(found, dict(torch.load(path, weights_only=True)))
    return found


def two_faced() -> bytes:
    """The right weights lie raw in the slack of an entry that unpacks to the wrong ones."""
    parts = parts_of(saved(HIDDEN))
    weight, shown = part(parts, "data/0"), part(parts_of(saved(SHOWN)), "data/0")
    weight.method = 8
    weight.gap = shown.data
    return write(parts)


def test_what_torch_writes_is_read_alike(tmp_path: Path) -> None:
    state = {
        **SHOWN,
        "n": torch.tensor(3),
        "part": torch.arange(10.0)[3:7],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
    }
    found = read_by_all(tmp_path / "m.pt", saved(state))
    assert found is not None
    assert same_tensors(found, state)


def test_an_archive_written_anew_without_compression_is_read_alike(tmp_path: Path) -> None:
    found = read_by_all(tmp_path / "m.pt", write(parts_of(saved(SHOWN))))
    assert found is not None
    assert same_tensors(found, SHOWN)


def test_a_file_with_two_faces_is_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "m.pt", two_faced()
    path.write_bytes(content)
    # What makes it one: to torch it is another network than its raw bytes show.
    assert same_tensors(dict(torch.load(path, weights_only=True)), HIDDEN)
    assert part(parts_of(saved(SHOWN)), "data/0").data in content
    with pytest.raises(ModelError, match=r"compressed entry '.*data/0'"):
        open_checkpoint(path)


def _change(ending: str, **changes: Any) -> Callable[[list[Part]], None]:
    def tamper(parts: list[Part]) -> None:
        chosen = part(parts, ending)
        for name, value in changes.items():
            setattr(chosen, name, value)

    return tamper


def _doubled(parts: list[Part]) -> None:
    parts.append(Part(part(parts, "data/0").name, part(parts_of(saved(HIDDEN)), "data/0").data))


def _doubled_in_another_case(parts: list[Part]) -> None:
    parts.insert(0, Part("archive/DATA.PKL", part(parts, "data.pkl").data))


def _swapped(parts: list[Part]) -> None:
    first, second = part(parts, "data/0"), part(parts, "data/1")
    first.directory_name, second.directory_name = second.name, first.name


def _two_folders(parts: list[Part]) -> None:
    parts.append(Part("other/data.pkl", part(parts, "data.pkl").data))


def _same_bytes_twice(parts: list[Part]) -> None:
    parts[-1].at = 0


TAMPERED: dict[str, tuple[Callable[[list[Part]], None], str]] = {
    "deflated": (_change("data/0", method=8), "compressed"),
    "deflated in the directory alone": (
        _change("data/0", directory={"method": 8}),
        "contradicts|compressed",
    ),
    "deflated in the header alone": (_change("data/0", local={"method": 8}), "contradicts"),
    "a wrong checksum": (_change("data/0", directory={"crc": 1}, local={"crc": 1}), "checksum"),
    "another checksum in the header": (_change("data/0", local={"crc": 1}), "contradicts"),
    "another size in the header": (
        _change("data/1", local={"size": 3, "packed": 3}),
        "contradicts",
    ),
    "another size in the directory": (
        _change("data/1", directory={"size": 3, "packed": 3}),
        "contradicts",
    ),
    "more bytes than there are": (
        _change("data/1", directory={"size": 9**9, "packed": 9**9}),
        "contradicts",
    ),
    "a gap": (_change("data/0", gap=b"\0" * 8), "gap"),
    "an entry twice": (_doubled, "two entries"),
    "an entry twice but for its case": (_doubled_in_another_case, "two entries"),
    "names that are swapped in the directory": (_swapped, "contradicts"),
    "two folders": (_two_folders, "one folder"),
    "an entry over another": (_same_bytes_twice, "contradicts|overlap"),
    "an encrypted entry": (_change("data/0", flags=1), "encrypted"),
    "a header name of its own": (_change("data/0", directory_name="archive/data/7"), "contradicts"),
    "no descriptor where one is said to be": (_change("data/0", flags=8), "descriptor"),
    "a descriptor of other figures": (
        _change("data/0", flags=8, descriptor=struct.pack("<4sIII", b"PK\x07\x08", 1, 2, 3)),
        "descriptor",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_archives_that_readers_could_disagree_on_are_refused(tmp_path: Path, kind: str) -> None:
    tamper, said = TAMPERED[kind]
    parts = parts_of(saved(SHOWN))
    tamper(parts)
    (tmp_path / "m.pt").write_bytes(write(parts))
    with pytest.raises(ModelError, match=said):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ({"before": b"PK\x03\x04 junk"}, "gap"),
        ({"after": b"\0"}, "without its directory at the end"),
        ({"comment": b"hello"}, "without its directory at the end"),
    ],
)
def test_bytes_around_an_archive_are_refused(
    tmp_path: Path, around: dict[str, bytes], said: str
) -> None:
    (tmp_path / "m.pt").write_bytes(write(parts_of(saved(SHOWN)), **around))
    with pytest.raises(ModelError, match=said):
        open_checkpoint(tmp_path / "m.pt")


def test_a_version_of_the_format_that_readers_do_not_know_is_refused(tmp_path: Path) -> None:
    content = bytearray(write(parts_of(saved(SHOWN))))
    content[content.index(b"PK\x01\x02") + 6] = 64
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"asks for version 6\.4"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("ending", ["data/0", "data.pkl", "serialization_id"])
def test_a_file_that_is_called_a_folder_is_refused(tmp_path: Path, ending: str) -> None:
    content = bytearray(write(parts_of(saved(SHOWN))))
    start = content.index(b"PK\x01\x02")
    named = content.index(ending.encode(), start)
    header = content.rindex(b"PK\x01\x02", start, named)
    content[header + 38] |= 0x10  # torch's reader leaves the buffer of such an entry as it was
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=f"calls .*{ending}' a folder"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_comment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    content = bytearray(write(parts_of(saved(SHOWN))))
    content[-2:] = b"\x01\x00"
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match="without the comment"):
        open_checkpoint(tmp_path / "m.pt")


def test_two_ends_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    content = bytearray(saved(SHOWN))
    at = content.rindex(b"PK\x06\x06")
    content[at + 48] ^= 1  # where the long record says that the directory begins
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match="contradict"):
        open_checkpoint(tmp_path / "m.pt")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_changed_in_an_archive_no_reader_sees_other_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(write(parts_of(saved(SHOWN))))
    # Weighted toward what describes the entries, where readers could come to differ.
    marks = [k for k in range(len(content)) if content[k : k + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.sampled_from(marks)) + data.draw(st.integers(0, 60))
        content[min(near, len(content) - 1)] = data.draw(st.integers(0, 255))
    read_by_all(tmp_path_factory.getbasetemp() / "changed.pt", bytes(content))


def test_a_legacy_file_with_another_after_it_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    for state in (SHOWN, HIDDEN):
        torch.save(state, stream, _use_new_zipfile_serialization=False)
    (tmp_path / "m.pt").write_bytes(stream.getvalue())
    with pytest.raises(ModelError, match="after its end"):
        open_checkpoint(tmp_path / "m.pt")
