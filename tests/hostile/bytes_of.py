"""Small hostile files, from bytes."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random

import numpy as np

ANSI = "\x1b]0;PWN\x07\x1b[2J\x1b[1;31mPWN"
BIDI = "\u202ePWN\u202c\u2066"
C1 = "\x9b31mPWN\x9d0;PWN\x9c"
MARKUP = "[bold]PWN[/nothing][link=http://x]"
HTML = "<script>alert('PWN')</script><img src=x onerror=alert(1)>"
MARKDOWN = "](javascript:alert(1)) ![i](http://x) \n# PWN @everyone www.x.org |"
XML = "]]>&PWN;\x0b\ufffe"
TEXTS = {
    "ansi": ANSI,
    "bidi": BIDI,
    "c1": C1,
    "markup": MARKUP,
    "html": HTML,
    "markdown": MARKDOWN,
    "xml": XML,
}


def special(kind: str, path: Path) -> None:
    """Put something that is no plain file, or a huge one, at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as stream:
            stream.truncate(2 << 30)
    elif kind == "dangling":
        path.symlink_to("nowhere/at/all")
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may not be long
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
        os.chdir(here)
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to({"zero": "/dev/zero", "full": "/dev/full", "urandom": "/dev/urandom"}[kind])


SPECIALS = (
    "fifo",
    "zero",
    "full",
    "urandom",
    "loop",
    "folder",
    "sparse",
    "dangling",
    "socket",
    "empty",
)


def noise(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


def mutate(content: bytes, seed: int) -> bytes:
    """Damage a file in one of the ways files are damaged: bits, cuts, doubled and missing parts."""
    random = Random(seed)
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        if not data:
            break
        at = random.randrange(len(data))
        # Headers stand at the start and, in archives, at the end.
        at = random.choice((at, at % 128, max(0, len(data) - 1 - at % 256)))
        how = random.randrange(6)
        if how == 0:
            data[at] ^= 1 << random.randrange(8)
        elif how == 1:
            data[at] = random.choice((0, 255, 0x7F, 0x80, 0x22, 0x7B))
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + random.randrange(1, 64)]
        elif how == 4:
            data[at:at] = random.randbytes(random.randrange(1, 32))
        else:
            data[at : at + 8] = struct.pack("<Q", random.choice((0, 2**31, 2**63 - 1, 2**64 - 1)))
    return bytes(data)


def safetensors(
    entries: dict[str, object], data: bytes = b"", *, length: int | None = None
) -> bytes:
    head = json.dumps(entries).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def tensor_entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def npy(header: str, data: bytes = b"", *, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) % (1 << 16))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npy_of(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def archive(entries: dict[str, bytes], *, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", how) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return stream.getvalue()


def png(
    width: int, height: int, rows: bytes = b"\0", *, kind: int = 0, extra: bytes = b""
) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def text_chunk(key: str, value: str) -> bytes:
    body = b"tEXt" + key.encode("latin-1", "replace") + b"\0" + value.encode("latin-1", "replace")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
