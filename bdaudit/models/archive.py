"""Check that a torch zip archive means the same to every reader.

A zip file describes each entry twice, in a local header before its bytes and in a directory at the
end, and readers differ in which they believe, in what they do with entries of one name, and in
whether they unpack what is compressed. A file made for it shows one set of weights to one reader
and another set to the next. Here every entry must be stored as it is, both descriptions must agree,
the checksums must be right, and the entries must fill the file up to the directory without gaps or
overlaps, as what `torch.save` writes does. Format: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from bdaudit.errors import ModelError

__all__ = ["ZIP_MAGIC", "check_torch_archive", "pickle_entry"]

ZIP_MAGIC = b"PK\x03\x04"

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_EXTRA = 1
_DESCRIPTOR_FOLLOWS, _UTF8 = 0x0008, 0x0800
_MOST_ENTRIES = 1_000_000
# Of an entry that is marked so torch's reader fills in nothing: its tensors would be whatever lay
# in memory before.
_IS_FOLDER = 0x10
_NEWEST_VERSION = 45  # zip64's; later ones are about compression and encryption


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry as the directory has it; `start` is where its local header begins."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int

    @property
    def name(self) -> str:
        return self.raw_name.decode("utf-8", errors="replace")


class _ArchiveError(Exception):
    """The archive is not what it should be; its text completes "got an archive ..."."""


def check_torch_archive(path: Path, content: bytes) -> None:
    """Refuse an archive that is not a plain torch checkpoint, or that readers could disagree on.

    Args:
        path: For messages.
        content: The whole file, which begins with `ZIP_MAGIC`.

    Raises:
        ModelError: It is damaged, carries code, is another kind of archive, or has a compressed,
            hidden, doubled or contradictory entry; the message names it.
    """
    try:
        entries, end = _directory(content)
    except (_ArchiveError, struct.error) as error:
        raise ModelError(
            f"{path}: expected a torch checkpoint, got a truncated or damaged zip archive "
            f"({error}); copy or download it again"
        ) from error
    _refuse_other_kinds(path, entries)
    try:
        _check_names(entries)
        _check_layout(content, entries, end)
    except (_ArchiveError, struct.error) as error:
        raise ModelError(
            f"{path}: expected a checkpoint as torch.save writes it, got an archive {error}; "
            "readers can differ in what they take from such a file, or it is damaged. Copy it "
            "again, or load it if you trust it and re-save it with torch.save or as .safetensors"
        ) from error


def pickle_entry(content: bytes) -> bytes:
    """Return the bytes of `data.pkl` of an archive, without checking anything else of it.

    Raises:
        ValueError: There is no such entry, or it is not stored as it is.
    """
    try:
        entries, _ = _directory(content)
        for entry in entries:
            if entry.name.rpartition("/")[2] == "data.pkl" and entry.method == 0:
                start = _data_start(content, entry)
                return content[start : start + entry.size]
    except (_ArchiveError, struct.error) as error:
        raise ValueError(str(error)) from error
    raise ValueError("no data.pkl")


def _directory(content: bytes) -> tuple[list[_Entry], int]:
    """Return the entries that the directory lists and where the directory begins."""
    n_entries, size, start = _locate_directory(content)
    if n_entries > _MOST_ENTRIES:
        raise _ArchiveError(f"of {n_entries} entries")
    entries, at = [], start
    for _ in range(n_entries):
        fields = _CENTRAL.unpack_from(content, at)
        signature, _, version, flags, method, _, _, crc, packed, unpacked = fields[:10]
        name_length, extra_length, comment_length, _, _, attributes, header_start = fields[10:]
        if signature != b"PK\x01\x02":
            raise _ArchiveError("whose directory is damaged")
        if version & 0xFF > _NEWEST_VERSION:  # the other byte names a system
            raise _ArchiveError(f"that asks for version {version / 10:.1f} of the format")
        at += _CENTRAL.size
        name = content[at : at + name_length]
        if attributes & _IS_FOLDER and unpacked:
            raise _ArchiveError(f"that calls {name[:80]!r} a folder, which has no bytes")
        extra = content[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        unpacked, packed, header_start = _widen(extra, unpacked, packed, header_start)
        entries.append(_Entry(name, flags, method, crc, packed, unpacked, header_start))
    if at != start + size:
        raise _ArchiveError("whose directory is of another length than it says")
    return entries, start


def _locate_directory(content: bytes) -> tuple[int, int, int]:
    """Return the number of entries, the directory's length, and where it begins."""
    end_at = len(content) - _END.size
    if end_at < 0 or content[end_at : end_at + 4] != b"PK\x05\x06":
        raise _ArchiveError("without its directory at the end")
    _, disk, first_disk, here, n_entries, size, start, comment = _END.unpack_from(content, end_at)
    if comment:
        raise _ArchiveError("without the comment that it says it ends with")
    directory_end = end_at
    locator_at = end_at - _LOCATOR_64.size
    if locator_at >= 0 and content[locator_at : locator_at + 4] == b"PK\x06\x07":
        _, _, end_64_at, _ = _LOCATOR_64.unpack_from(content, locator_at)
        if end_64_at != locator_at - _END_64.size:
            raise _ArchiveError("whose two ends contradict each other")
        signature, length, _, _, disk, first_disk, here, entries_64, size_64, start_64 = (
            _END_64.unpack_from(content, end_64_at)
        )
        if signature != b"PK\x06\x06" or length != _END_64.size - 12:
            raise _ArchiveError("whose two ends contradict each other")
        for short, full, long in (
            (n_entries, _FULL_16, entries_64),
            (size, _FULL_32, size_64),
            (start, _FULL_32, start_64),
        ):
            if short not in (full, long):
                raise _ArchiveError("whose two ends contradict each other")
        n_entries, size, start, directory_end = entries_64, size_64, start_64, end_64_at
    if disk or first_disk or here != n_entries or start + size != directory_end:
        raise _ArchiveError("whose directory is not where it says")
    return n_entries, size, start


def _widen(extra: bytes, *values: int) -> list[int]:
    """Replace sizes and offsets that do not fit into 32 bits by those of the zip64 field."""
    if _FULL_32 not in values:
        return list(values)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64_EXTRA:
            field = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(field, _FULL_32) if value == _FULL_32 else value for value in values]
        at += 4 + length
    return list(values)


def _refuse_other_kinds(path: Path, entries: list[_Entry]) -> None:
    """Refuse archives that carry code, or are no checkpoint, in words about what they are."""
    # Entries stand under one folder named for the file: "weights/data.pkl".
    names = [entry.name for entry in entries]
    inner = {name.partition("/")[2] or name for name in names}
    if any(name.startswith("code/") or name == "constants.pkl" for name in inner):
        raise ModelError(
            f"{path}: expected a state_dict, got a TorchScript archive, which carries code; it was "
            "not run. Re-save its weights: torch.save(torch.jit.load(...).state_dict(), 'w.pt')"
        )
    if "archive_format" in inner or any("exported_program" in name for name in inner):
        raise ModelError(
            f"{path}: expected a state_dict, got a torch.export archive (.pt2); loading one can "
            "run code, so it was not loaded. If you trust it, re-save its weights: "
            "torch.save(torch.export.load(...).state_dict, 'weights.pt')"
        )
    if "data.pkl" in inner:
        return
    what = "a zip archive without 'data.pkl'; unpack it and name the checkpoint inside"
    if names and all(name.endswith(".npy") for name in names):
        what = (
            "numpy's .npz, arrays without a network's structure; save the network's weights with "
            "torch.save or as .safetensors"
        )
    elif "config.json" in names and any(name.endswith(".h5") for name in names):
        what = "a Keras model; export it to ONNX and audit it with --mode query"
    raise ModelError(f"{path}: expected a torch checkpoint, got {what}")


def _check_names(entries: list[_Entry]) -> None:
    folders = {entry.name.partition("/")[0] for entry in entries}
    if len(folders) != 1 or not all("/" in entry.name for entry in entries):
        raise _ArchiveError("whose entries do not stand under one folder")
    seen = set()
    for entry in entries:
        if b"\0" in entry.raw_name or b"\\" in entry.raw_name:
            raise _ArchiveError(f"with the odd name {entry.name[:80]!r}")
        # torch's own reader takes no notice of case.
        folded = entry.name.casefold()
        if folded in seen:
            raise _ArchiveError(f"with two entries {entry.name[:80]!r}")
        seen.add(folded)


def _check_layout(content: bytes, entries: list[_Entry], end: int) -> None:
    """Go through the entries in the order of their bytes."""
    at = 0
    ordered = sorted(entries, key=lambda entry: entry.start)
    for entry, following in zip(ordered, [*(e.start for e in ordered[1:]), end], strict=True):
        shown = repr(entry.name[:80])
        if entry.start != at:
            raise _ArchiveError(
                f"with {'a gap' if entry.start > at else 'an overlap'} before {shown}"
            )
        if entry.method != 0 or entry.packed != entry.size:
            raise _ArchiveError(
                f"with the compressed entry {shown} (of {entry.packed} bytes that unpack to "
                f"{entry.size}; torch.save never compresses)"
            )
        if entry.flags & ~(_DESCRIPTOR_FOLLOWS | _UTF8):
            raise _ArchiveError(f"with the encrypted or patched entry {shown}")
        start = _data_start(content, entry)
        stop = start + entry.size
        if stop > end:
            raise _ArchiveError(f"whose entry {shown} runs into the directory")
        if zlib.crc32(memoryview(content)[start:stop]) != entry.crc:
            raise _ArchiveError(f"whose entry {shown} has another checksum than its directory says")
        if entry.flags & _DESCRIPTOR_FOLLOWS:
            stop = _check_descriptor(content, entry, stop, following)
        at = stop
        if following != at:
            raise _ArchiveError(f"with {'a gap' if following > at else 'an overlap'} after {shown}")


def _data_start(content: bytes, entry: _Entry) -> int:
    """Compare an entry's local header with the directory; return where its bytes begin."""
    fields = _LOCAL.unpack_from(content, entry.start)
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    name_at = entry.start + _LOCAL.size
    extra_at = name_at + name_length
    shown = repr(entry.name[:80])
    if (
        signature != ZIP_MAGIC
        or content[name_at:extra_at] != entry.raw_name
        or (flags, method) != (entry.flags, entry.method)
    ):
        raise _ArchiveError(f"whose header of {shown} contradicts its directory")
    size, packed = _widen(content[extra_at : extra_at + extra_length], size, packed)
    told = {(entry.crc, entry.packed, entry.size)}
    if flags & _DESCRIPTOR_FOLLOWS:
        told.add((0, 0, 0))  # they come after the bytes
    if (crc, packed, size) not in told:
        raise _ArchiveError(f"whose header of {shown} contradicts its directory")
    return int(extra_at + extra_length)


def _check_descriptor(content: bytes, entry: _Entry, at: int, following: int) -> int:
    """Compare what stands after an entry's bytes with the directory; return where that ends."""
    for form in ("<4sIII", "<4sIQQ"):  # the second of entries above 4 GiB
        if following - at == struct.calcsize(form):
            signature, *told = struct.unpack_from(form, content, at)
            if signature == b"PK\x07\x08" and told == [entry.crc, entry.packed, entry.size]:
                return following
    raise _ArchiveError(
        f"whose descriptor of {entry.name[:80]!r} contradicts its directory, or a gap after it"
    )
