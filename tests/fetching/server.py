"""A real HTTP server on loopback that serves files, as well or as badly as it is told to."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class FileServer:
    """What is served, and what was asked.

    Attributes:
        files: Content by path.
        redirects: Location by path.
        ranges: Whether parts can be asked for.
        tags: Whether an ETag is sent.
        lengths: Whether the size is sent; without it the body ends with the connection.
        cuts: Bytes after which the next answers break off, one entry an answer.
        statuses: Statuses that the next answers have in place of 200, one entry an answer.
        user: `name:password` that is asked for.
        requests: (method, path, headers) of everything asked.
        sent: Bytes of content sent.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    user: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def asked(self, method: str) -> int:
        return sum(m == method for m, _, _ in self.requests)


@contextmanager
def serving(server: FileServer, certificate: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    class Handler(_Handler):
        told = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        http.socket = certificate.wrap_socket(http.socket, server_side=True)
        scheme = "https"
    server.url = f"{scheme}://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def _answer(self, *, body: bool) -> None:
        told = self.told
        path = urlsplit(self.path).path
        told.requests.append((self.command, self.path, dict(self.headers.items())))
        if told.user is not None:
            wanted = "Basic " + base64.b64encode(told.user.encode()).decode()
            if self.headers.get("Authorization") != wanted:
                self._refuse(401)
                return
        if path in told.redirects:
            self.send_response(302)
            self.send_header("Location", told.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if body and told.statuses:
            self._refuse(told.statuses.pop(0))
            return
        if path not in told.files:
            self._refuse(404)
            return
        self._send(told.files[path], body=body)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, *, body: bool) -> None:
        told = self.told
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if told.ranges and match and self.headers.get("If-Range", tag) == tag:
            start = int(match[1])
            if start >= len(content):
                self._refuse(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if told.tags:
            self.send_header("ETag", tag)
        if told.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if not body:
            return
        part = content[start:]
        if told.cuts:
            part = part[: told.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(part)
        told.sent += len(part)
