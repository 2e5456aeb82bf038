"""A server of the Open Inference Protocol on loopback that misbehaves on command.

It is written against the protocol's text, not with bdaudit's own encoder, so that the two check
each other.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Fault = Callable[["Handler", dict[str, Any]], None]

_STRUCT_CODES = {"FP32": "f", "UINT8": "B", "FP16": "e"}


class FaultyServer(ThreadingHTTPServer):
    """Serves `answer` as the model "twin"; the next inferences meet `faults`, in order, if any.

    Attributes:
        answered: Images of every inference whose answer was written in full, in order.
        seen: (method, path, headers) of every request.
        most_at_once: Largest number of inferences in progress together.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.faults: list[Fault | None] = []
        self.answered: list[NDArray[Any]] = []
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.in_progress = 0
        self.most_at_once = 0
        self.token: str | None = None
        self.extensions: list[str] = []
        self.output_type = "FP32"
        self.metadata: dict[str, Any] = {
            "name": "twin",
            "versions": ["1"],
            "platform": "by_hand",
            "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}],
        }
        self.metadata_fault: Fault | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/models/twin"

    @property
    def n_answered(self) -> int:
        """Images whose answer was written; who reads it may be faster than who notes it."""
        deadline = time.monotonic() + 1.0
        while self.in_progress and time.monotonic() < deadline:
            time.sleep(0.005)
        return sum(len(images) for images in self.answered)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyServer]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._note()
        if self._refuses():
            return
        if self.path == "/v2":
            self.reply_json({"name": "faulty", "extensions": self.server.extensions})
        elif self.path in ("/v2/models/twin", "/v2/models/twin/versions/1"):
            if self.server.metadata_fault is not None:
                self.server.metadata_fault(self, {})
            else:
                self.reply_json(self.server.metadata)
        else:
            self.reply_json({"error": "no such model"}, status=404)

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._refuses():
            return
        with self.server.lock:
            fault = self.server.faults.pop(0) if self.server.faults else None
            self.server.in_progress += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.in_progress)
        try:
            head, images = self._read_images(body)
            answer = self._answer(head, images)
            if fault is not None:
                fault(self, answer)
                return
            self.reply_json(answer)
            with self.server.lock:
                self.server.answered.append(images)
        finally:
            with self.server.lock:
                self.server.in_progress -= 1

    def reply_json(self, value: Any, *, status: int = 200, **headers: str) -> None:
        raw = b"".join(
            bytes(output.pop("raw")) for output in value.get("outputs", ()) if "raw" in output
        )
        head = json.dumps(value).encode()
        if raw:
            headers["Inference-Header-Content-Length"] = str(len(head))
        self.reply(head + raw, "application/json", status=status, **headers)

    def reply(
        self,
        body: bytes,
        kind: str,
        *,
        status: int = 200,
        claims: int | None = None,
        **headers: str,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if claims is None else claims))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        # Linger 0: a reset rather than a clean end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _note(self) -> None:
        with self.server.lock:
            self.server.seen.append((self.command, self.path, dict(self.headers)))

    def _refuses(self) -> bool:
        sent = self.headers.get("Authorization", "")
        if self.server.token is None or sent == f"Bearer {self.server.token}":
            return False
        # A careless server: it repeats the secret it was sent.
        self.reply_json({"error": f"not allowed: {sent}"}, status=401)
        return True

    def _read_images(self, body: bytes) -> tuple[dict[str, Any], NDArray[Any]]:
        length = self.headers.get("Inference-Header-Content-Length")
        head = json.loads(body if length is None else body[: int(length)])
        (tensor,) = head["inputs"]
        if length is None:
            values = tensor["data"]
        else:
            raw = body[int(length) :]
            assert len(raw) == tensor["parameters"]["binary_data_size"]
            code = _STRUCT_CODES[tensor["datatype"]]
            values = struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)
        return head, np.array(values, dtype=np.float64).reshape(tensor["shape"])

    def _answer(self, head: dict[str, Any], images: NDArray[Any]) -> dict[str, Any]:
        scores = self.server.answer(torch.from_numpy(images).float())
        output: dict[str, Any] = {
            "name": "scores",
            "datatype": self.server.output_type,
            "shape": list(scores.shape),
        }
        wanted = (head.get("outputs") or [{}])[0].get("parameters", {})
        if wanted.get("binary_data"):
            output["raw"] = struct.pack(f"<{scores.numel()}f", *scores.flatten().tolist())
            output["parameters"] = {"binary_data_size": len(output["raw"])}
        else:
            output["data"] = scores.flatten().tolist()
        return {"model_name": "twin", "outputs": [output]}


def drop(handler: Handler, answer: dict[str, Any]) -> None:
    handler.hang_up()


def drop_late(handler: Handler, answer: dict[str, Any]) -> None:
    """Hang up when requests sent together with this one have been answered."""
    time.sleep(0.1)
    handler.hang_up()


def delay(seconds: float) -> Fault:
    """Answer, but only after a while; the answer counts as written."""

    def fault(handler: Handler, answer: dict[str, Any]) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            handler.reply_json(answer)

    return fault


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler, answer: dict[str, Any]) -> None:
        handler.reply_json({"error": f"as told: {code}"}, status=code, **headers)

    return fault


def cut_connection(handler: Handler, answer: dict[str, Any]) -> None:
    """Promise a whole body and hang up half way."""
    body = json.dumps(answer).encode()
    handler.reply(body[: len(body) // 2], "application/json", claims=len(body))
    handler.wfile.flush()
    handler.hang_up()


def cut_body(handler: Handler, answer: dict[str, Any]) -> None:
    """Send half of the JSON as if it were all."""
    body = json.dumps(answer).encode()
    handler.reply(body[: len(body) // 2], "application/json")


def web_page(handler: Handler, answer: dict[str, Any]) -> None:
    handler.reply(b"<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")


def something_else(handler: Handler, answer: dict[str, Any]) -> None:
    handler.reply_json({"hello": "world"})


def deep(handler: Handler, answer: dict[str, Any]) -> None:
    """Send lists in lists, deeper than any parser follows."""
    handler.reply(b"[" * 200_000 + b"]" * 200_000, "application/json")


def lie(**changes: Any) -> Fault:
    """Change fields of the output: its shape, data, name or type."""

    def fault(handler: Handler, answer: dict[str, Any]) -> None:
        answer["outputs"][0] |= changes
        handler.reply_json(answer)

    return fault


def flood(handler: Handler, answer: dict[str, Any]) -> None:
    """Send far more than anybody wants."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(1 << 33))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):  # 64 MB at most
            handler.wfile.write(b" " * (1 << 16))
    handler.close_connection = True


def drip(handler: Handler, answer: dict[str, Any]) -> None:
    """Send the body a byte at a time, each within any timeout."""
    body = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for byte in body[:100]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
    handler.close_connection = True
