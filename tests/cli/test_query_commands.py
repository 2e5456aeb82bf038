"""Query mode as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bdaudit.records import read_record
from tests.blackbox.faulty_server import FaultyServer, drop, lie, status, web_page
from tests.blackbox.onnx_graphs import twin_onnx
from tests.cli.test_commands import audit_arguments, command, environment, files, run
from tests.twins import dormant_twin

__all__ = ["files"]

ASKED = f"{Path(__file__).with_name('twin_service.py')}"


def reactivate_arguments(files: Path, function: str, *more: object) -> list[object]:
    return [
        "reactivate",
        f"{ASKED}:{function}",
        "--eps",
        "0.05",
        "--data",
        files / "clean.npz",
        "--trigger",
        files / "trigger.toml",
        "--max-queries",
        1000,
        "--craft",
        100,
        "--num-classes",
        4,
        *more,
    ]


@pytest.mark.parametrize("function", ["scores", "labels"])
def test_a_function_that_is_asked_is_woken(files: Path, tmp_path: Path, function: str) -> None:
    result_file = tmp_path / "r.json"
    result = run(
        *reactivate_arguments(files, function, "--feedback", function, "--json", result_file)
    )
    assert result.exit_code == 0, result.output
    assert "Image queries" in result.stdout
    record = read_record(result_file)
    (woken,) = [r for r in record.runs if r.role == "defended" and r.condition == "trigger"]
    assert woken.feedback == function
    assert woken.image_queries <= 1000
    assert woken.asr.value > 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"], (
        "the state goes when the work is done"
    )


def test_an_audit_by_queries_alone_exits_by_its_verdict(files: Path, tmp_path: Path) -> None:
    arguments = audit_arguments(files, "dormant", "--cold", "--max-queries", 800)
    arguments[1] = f"{ASKED}:scores"
    arguments[arguments.index("0.02,0.05")] = "0.05"
    result = run(*arguments, "--json", tmp_path / "r.json")
    assert result.exit_code == 1, result.output
    assert "image queries" in result.stdout
    assert "predictions only" in result.stdout
    redrawn = run("report", tmp_path / "r.json")
    assert redrawn.stdout == result.stdout


def test_a_killed_run_is_resumed_by_the_same_command(files: Path, tmp_path: Path) -> None:
    slow = reactivate_arguments(files, "slow_scores", "--json", tmp_path / "r.json")
    process = subprocess.Popen(
        command(slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    state = tmp_path / "r.json.state"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(state.glob("*.search.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "r.json").exists()
    changed = [*slow, "--resume", "--seed", "1"]
    refused = run(*changed)
    assert refused.exit_code == 2
    assert "seed was 0, is 1" in refused.stderr
    resumed = run(*slow, "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = tmp_path / "whole.json"
    run(*reactivate_arguments(files, "slow_scores", "--json", whole))
    documents = [json.loads(p.read_text())["runs"] for p in (tmp_path / "r.json", whole)]
    assert [r["delta_sha256"] for r in documents[0]] == [r["delta_sha256"] for r in documents[1]]
    assert [r["image_queries"] for r in documents[0]] == [r["image_queries"] for r in documents[1]]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--mode", "white"], 2, "black-box model"),
        (["--endpoint", "http://127.0.0.1:1/v2/models/m"], 2, "got both"),
        (["--resume"], 2, "--json"),
        (["--resume", "--state", "nowhere"], 4, "nothing to resume"),
        (["--token-env", "BDAUDIT_NO_SUCH"], 0, ""),
    ],
)
def test_contradictions_are_said(files: Path, more: list[str], code: int, said: str) -> None:
    result = run(*reactivate_arguments(files, "scores", *more))
    assert result.exit_code == code, result.output
    assert said in result.stderr


def endpoint_arguments(files: Path, url: str, *more: object) -> list[object]:
    return [
        "reactivate",
        "--endpoint",
        url,
        *("--retries", 0, "--eps", "0.05", "--craft", 100, "--max-queries", 1000),
        *("--data", files / "clean.npz", "--trigger", files / "trigger.toml"),
        *more,
    ]


def wrong_name(server: FaultyServer) -> None:
    server.metadata_fault = status(404)


def wrong_shape(server: FaultyServer) -> None:
    server.metadata["inputs"][0]["shape"] = [-1, 64]


def several_inputs(server: FaultyServer) -> None:
    server.metadata["inputs"] *= 2


def page(server: FaultyServer) -> None:
    server.metadata_fault = web_page


def refusal(server: FaultyServer) -> None:
    server.token = "another"


def lying_shape(server: FaultyServer) -> None:
    server.faults = [lie(shape=[7, 4])]


def down(server: FaultyServer) -> None:
    server.metadata_fault = drop


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (wrong_name, "expected a model there, got status 404"),
        (wrong_shape, "expected one input of images"),
        (several_inputs, "expected one input that takes images"),
        (page, "got a web page (HTML)"),
        (refusal, "access refused (status 401; a token was sent)"),
        (lying_shape, "claims the shape (7, 4)"),
        (down, "no usable answer, asked 1 times"),
    ],
)
def test_a_server_that_cannot_be_asked_exits_with_4(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[FaultyServer], None],
    said: str,
) -> None:
    server = FaultyServer(dormant_twin())
    monkeypatch.setenv("BDAUDIT_TEST_TOKEN", "s3cret")
    fault(server)
    with server.running():
        result = run(*endpoint_arguments(files, server.url, "--token-env", "BDAUDIT_TEST_TOKEN"))
    assert result.exit_code == 4, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def unknown_operator(path: Path) -> None:
    model = onnx.load(str(twin_onnx(path, dormant_twin())))
    model.graph.node[1].op_type = "Grelu"
    onnx.save(model, str(path))


def second_input(path: Path) -> None:
    model = onnx.load(str(twin_onnx(path, dormant_twin())))
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "mask"
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unknown_operator, "Grelu"),
        (second_input, "expected one input that takes images, got 2"),
        (lambda path: path.write_bytes(b"no model"), "expected an ONNX model"),
        (lambda path: None, "expected an ONNX model: No such file or directory"),
    ],
    ids=["operator", "inputs", "junk", "missing"],
)
def test_an_onnx_file_that_cannot_be_asked_exits_with_4(
    files: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "model.onnx"
    spoil(path)
    arguments = reactivate_arguments(files, "scores")
    arguments[1] = path
    result = run(*arguments)
    assert result.exit_code == 4, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_what_was_measured_survives_an_endpoint_that_dies(files: Path, tmp_path: Path) -> None:
    server = FaultyServer(dormant_twin())
    with server.running():
        whole = endpoint_arguments(files, server.url, "--json", tmp_path / "whole.json")
        assert run(*whole).exit_code == 0
        n_paid = server.n_answered
        server.reset()
        arguments = endpoint_arguments(files, server.url, "--json", tmp_path / "r.json")
        server.faults = [*[None] * 35, *[drop] * 5]
        dead = run(*arguments)
        assert dead.exit_code == 4, dead.output
        assert "r.json.state" in dead.stderr
        assert "--resume" in dead.stderr
        server.faults = []
        resumed = run(*arguments, "--resume")
        assert resumed.exit_code == 0, resumed.output
        assert server.n_answered == n_paid
    documents = [json.loads((tmp_path / f"{n}.json").read_text())["runs"] for n in ("r", "whole")]
    for run_of in documents[0] + documents[1]:
        run_of.pop("elapsed_s")
    assert documents[0] == documents[1]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_pays_at_most_for_the_request_in_flight_again(
    files: Path, tmp_path: Path
) -> None:
    server = FaultyServer(dormant_twin())
    request_size, n_kills = 32, 0
    with server.running():
        whole = endpoint_arguments(files, server.url, "--json", tmp_path / "whole.json")
        assert run(*whole).exit_code == 0
        n_paid = server.n_answered
        server.reset()
        arguments = endpoint_arguments(files, server.url, "--json", tmp_path / "r.json")
        for n_images in (300, 900, 1500):
            resume = ["--resume"] if n_kills else []
            process = subprocess.Popen(
                command([*arguments, *resume]),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )
            deadline = time.monotonic() + 120
            while server.n_answered < n_images and time.monotonic() < deadline:
                time.sleep(0.001)
            process.kill()
            n_kills += 1
            assert process.wait(timeout=60) == -signal.SIGKILL
        assert run(*arguments, "--resume").exit_code == 0
    assert n_paid <= server.n_answered <= n_paid + n_kills * request_size
    documents = [json.loads((tmp_path / f"{n}.json").read_text())["runs"] for n in ("r", "whole")]
    for run_of in documents[0] + documents[1]:
        run_of.pop("elapsed_s")
    assert documents[0] == documents[1]
