"""A server that lies: the answer is chosen by the first part of the path."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.hostile.bytes_of import ANSI

_DIGITS = "9" * 5000


def _head(status: str, *lines: str, body: bytes = b"") -> bytes:
    return ("HTTP/1.1 " + "\r\n".join((status, *lines)) + "\r\n\r\n").encode("utf-8") + body


def _json(body: bytes, *lines: str) -> bytes:
    kind = "Content-Type: application/json"
    return _head("200 OK", kind, f"Content-Length: {len(body)}", *lines, body=body)


_DESCRIBED = b'{"name": "m", "inputs": [{"name": "i", "datatype": "FP32", "shape": [%s]}]}'
ANSWERS: dict[str, bytes | None] = {
    "nothing": b"",
    "noise": b"\0\xff" * 200,
    "range-1e30": _head("206 Partial", f"Content-Range: bytes {10**30}-{10**30 + 1}/*", body=b"x"),
    "range-digits": _head("206 Partial", f"Content-Range: bytes {_DIGITS}-1/2", body=b"x"),
    "range-other": _head(
        "206 Partial", "Content-Range: bytes 5-9/10", "Content-Length: 5", body=b"12345"
    ),
    "range-none": _head("206 Partial", "Content-Length: 1", body=b"x"),
    "length-digits": _head("200 OK", f"Content-Length: {_DIGITS}", body=b"x"),
    "length-more": _head("200 OK", "Content-Length: 1000", body=b"x"),
    "length-huge": _head("200 OK", "Content-Length: 99999999999999", body=b"x"),
    "length-negative": _head("200 OK", "Content-Length: -1", body=b"x"),
    "length-two": _head("200 OK", "Content-Length: 1", "Content-Length: 2", body=b"xy"),
    "retry-digits": _head("503 Busy", f"Retry-After: {_DIGITS}", "Content-Length: 0"),
    "retry-date": _head("503 Busy", "Retry-After: Mon, 99 Foo 99999 99:99:99", "Content-Length: 0"),
    "retry-negative": _head("429 Slow", "Retry-After: -5", "Content-Length: 0"),
    "reason-ansi": _head(f"404 {ANSI}", "Content-Length: 0"),
    "body-ansi": _head("500 Oops", "Content-Length: 12", body=b"\x1b[31mPWN\x9b1m"),
    "location-port": _head("302 Found", "Location: http://127.0.0.1:99999/m.safetensors"),
    "location-idna": _head("302 Found", "Location: http://xn--a/m.safetensors"),
    "location-bad": _head("302 Found", "Location: http://[::1/m"),
    "location-file": _head("302 Found", "Location: file:///etc/passwd"),
    "location-long": _head("302 Found", "Location: http://x/" + "a" * 70_000),
    "location-self": _head("302 Found", "Location: m.safetensors"),
    "location-none": _head("302 Found", "Content-Length: 0"),
    "etag-ansi": _head("200 OK", 'ETag: "\x1b[31m"', "Content-Length: 1", body=b"x"),
    "chunks-huge": _head("200 OK", "Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\nx"),
    "chunks-bad": _head("200 OK", "Transfer-Encoding: chunked", body=b"zz\r\nx"),
    "gzip": _head("200 OK", "Content-Encoding: gzip", "Content-Length: 3", body=b"abc"),
    "headers-many": _head("200 OK", *(f"X-{n}: {n}" for n in range(5000))),
    "json-deep": _json(b"[" * 100_000),
    "json-list": _json(b"[]"),
    "json-name": _json(b'{"name": "\\u001b[31m"}'),
    "json-shape": _json(_DESCRIBED % b"1e400, 1, 28, 28"),
    "json-dims": _json(_DESCRIBED % b"1, 1, 99999999, 99999999"),
    "json-many": _json(_DESCRIBED % b"1, 1" + b", 1" * 10_000),
    "json-bidi": _json(b'{"name": "m", "platform": "\\u202e", "inputs": 5}'),
    "head-digits": _json(b"{}", f"Inference-Header-Content-Length: {_DIGITS}"),
    "page": _head(
        "200 OK", "Content-Type: text/html", "Content-Length: 15", body=b"<!doctype html>"
    ),
    "trickle": None,
    "trickle-head": None,
}


@contextmanager
def lying_server() -> Iterator[str]:
    """Give the address of a server that answers so, until the block ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.2)
    ended = threading.Event()

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                continue
            threading.Thread(target=_answer, args=(connection, ended), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ended.set()
        listening.close()


def _answer(connection: socket.socket, ended: threading.Event) -> None:
    with connection, suppress(OSError):
        connection.settimeout(10)
        asked = connection.recv(65536)
        parts = asked.split(b" ")
        name = parts[1].decode("latin-1").split("/")[1] if len(parts) > 1 else ""
        if name == "trickle":
            connection.sendall(_head("200 OK", "Content-Length: 1000000"))
        if name in {"trickle", "trickle-head"}:
            for _ in range(600):
                if ended.is_set():
                    return
                connection.sendall(b"H")
                time.sleep(0.1)
            return
        connection.sendall(ANSWERS.get(name) or b"")
