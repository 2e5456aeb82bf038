"""A real server, MLServer, started on loopback with a twin and a detector as ONNX files behind it.

It speaks JSON only; the binary extension is held against Triton's own client in test_protocol.py.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from bdaudit.blackbox import (
    BlackBoxOptions,
    Meter,
    ServedBlackBox,
    TransportSettings,
    check_repeatability,
    open_black_box,
)
from bdaudit.errors import ModelError
from tests.blackbox import mlserver_runtime
from tests.blackbox.onnx_graphs import finder, finder_onnx, twin_onnx
from tests.blackbox.test_detections import ASKED, opened
from tests.twins import original_twin, twin_sample, twin_trigger

NET = original_twin()
_START_S = 90.0


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlserver")
    shutil.copy(Path(mlserver_runtime.__file__), folder)
    http_port, grpc_port = free_ports(2)
    settings = {
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    twin = {
        "name": "twin",
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": str(twin_onnx(folder / "twin.onnx", NET)), "version": "v1"},
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}],
    }
    detector = {
        "name": "finder",
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": str(finder_onnx(folder / "finder.onnx"))},
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8]}],
    }
    for model in (twin, detector):
        inside = folder / str(model["name"])
        inside.mkdir()
        shutil.copy(Path(mlserver_runtime.__file__), inside)
        (inside / "model-settings.json").write_text(json.dumps(model))
    start = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(start, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(server, http_port, folder / "log.txt")
            yield f"http://127.0.0.1:{http_port}/v2/models/twin"
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_at = time.monotonic() + _START_S
    while time.monotonic() < give_up_at and server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v2/models/twin/ready").is_success:
                return
        time.sleep(0.2)
    pytest.fail(f"MLServer did not come up:\n{log.read_text()[-2000:]}")


@pytest.mark.parametrize("feedback", ["scores", "labels"])
def test_it_answers_as_the_network_does(endpoint: str, feedback: str) -> None:
    images = twin_trigger(twin_sample(25, 0).images)
    options = BlackBoxOptions(request_size=4, transport=TransportSettings(concurrency=3))
    with open_black_box(endpoint, name="defended", feedback=feedback, options=options) as box:
        meter = Meter(box, max_queries=25)
        answers = meter.ask(images)
        assert (box.image_shape, box.num_classes) == ((1, 8, 8), 4)
        assert (box.n_queries, meter.n_left) == (25, 0)
    expected = NET(images)
    if feedback == "scores":
        torch.testing.assert_close(answers, expected)
    else:
        assert torch.equal(answers, expected.argmax(1))


def test_a_served_detector_answers_for_the_box_that_is_asked_about(endpoint: str) -> None:
    with opened(endpoint.replace("twin", "finder")) as box:
        answers = box.ask(ASKED)
        assert (box.n_queries, box.image_shape) == (4, (4, 8, 8))
    torch.testing.assert_close(answers, opened(finder).ask(ASKED))


def test_it_is_steady_and_known_by_name(endpoint: str) -> None:
    with ServedBlackBox(f"{endpoint}/versions/v1", name="defended") as box:
        assert check_repeatability(box, twin_sample(8, 1).images) == []
        identity = box.identity()
        assert identity.details["model"] == "twin"
        assert identity.source.endswith("/v2/models/twin/versions/v1")


def test_it_has_no_other_model(endpoint: str) -> None:
    with pytest.raises(ModelError, match="Model triplet not found"):
        ServedBlackBox(endpoint.replace("twin", "triplet"), name="defended")
