"""OpenVINO's IR through its real runtime, against the same network in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from onnx import TensorProto
from typer.testing import CliRunner

from bdaudit.blackbox import BlackBoxOptions, OpenVinoBlackBox, open_black_box
from bdaudit.cli import app
from bdaudit.errors import ModelError
from bdaudit.models import ONE_SCORE, ModelSettings, load_model
from tests.blackbox.onnx_graphs import twin_onnx
from tests.cli.twin_files import write_twin_files
from tests.twins import dormant_twin, original_twin, twin_sample

NET = original_twin()
IMAGES = twin_sample(21, 0).images


def twin_ir(path: Path, net: Any = NET, *, compress: bool = False, **form: Any) -> Path:
    """An IR as OpenVINO itself writes it."""
    onnx = twin_onnx(path.with_suffix(".onnx"), net, **form)
    model = openvino.Core().read_model(onnx)
    openvino.save_model(model, path, compress_to_fp16=compress)
    onnx.unlink()
    return path


@pytest.mark.parametrize(
    "form",
    [{}, {"batch": 8}, {"batch": 1}, {"order": "NHWC"}, {"compress": True}],
    ids=str,
)
def test_answers_are_the_networks(tmp_path: Path, form: dict[str, Any]) -> None:
    box = open_black_box(twin_ir(tmp_path / "twin.xml", **form), name="defended")
    assert isinstance(box, OpenVinoBlackBox)
    loose = {"atol": 0.02, "rtol": 1e-3} if form.get("compress") else {}
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES), **loose)
    assert box.n_queries == len(IMAGES)
    assert (box.num_classes, box.image_shape, box.score_kind) == (4, (1, 8, 8), "logits")
    assert [file.name for file in box.files] == ["twin.xml", "twin.bin"]


def test_eight_bit_inputs_labels_and_probabilities(tmp_path: Path) -> None:
    eight = open_black_box(twin_ir(tmp_path / "a.xml", dtype=TensorProto.UINT8), name="m")
    assert eight.grid == 255
    torch.testing.assert_close(eight.ask(IMAGES), NET((IMAGES * 255).round() / 255))
    path = twin_ir(tmp_path / "b.xml", labels=True)
    options = BlackBoxOptions(settings=ModelSettings(num_classes=4))
    labels = open_black_box(path, name="m", feedback="labels", options=options)
    assert torch.equal(labels.ask(IMAGES), NET(IMAGES).argmax(dim=1))
    shares = open_black_box(twin_ir(tmp_path / "c.xml", probabilities=True), name="m")
    torch.testing.assert_close(shares.ask(IMAGES), NET(IMAGES).log_softmax(dim=1))


def test_the_digest_covers_both_files(tmp_path: Path) -> None:
    first = open_black_box(twin_ir(tmp_path / "a.xml"), name="m").identity()
    other = open_black_box(twin_ir(tmp_path / "b.xml", dormant_twin()), name="m").identity()
    assert first.kind == "openvino"
    assert first.sha256 != other.sha256


def spoil(path: Path, what: str) -> str:
    """Damage an IR; return what must be said of it."""
    graph, weights = path.read_text(), path.with_suffix(".bin")
    if what == "no weights":
        weights.unlink()
        return "expected its weights beside it as twin.bin"
    if what == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:20])
        return "cannot open it: Incorrect weights"
    if what == "a link out of the folder":
        (path.parent.parent / "w.bin").write_bytes(weights.read_bytes())
        weights.unlink()
        weights.symlink_to(path.parent.parent / "w.bin")
        return "outside|leads out|link"
    if what == "a doctype":
        path.write_text(graph.replace("<net", '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net', 1))
        return "without a DOCTYPE"
    if what == "a web page":
        path.write_text("<html><body>sign in</body></html>")
        return "expected an OpenVINO IR"
    if what == "an unknown operator":
        known = 'type="Convolution" version="opset1"'
        assert known in graph
        path.write_text(graph.replace(known, 'type="Evil" version="x"'))
        return "cannot open it"
    path.write_text(graph[: len(graph) // 2])
    return "cannot open it"


@pytest.mark.parametrize(
    "what",
    [
        *("no weights", "weights cut short", "a link out of the folder", "a doctype"),
        *("a web page", "an unknown operator", "half of it"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "in").mkdir()
    path = twin_ir(tmp_path / "in" / "twin.xml")
    said = spoil(path, what)
    with pytest.raises(ModelError, match=said):
        open_black_box(path, name="defended")


def test_one_score_an_image(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    for name, last in (("z", lambda z: z), ("p", ops.sigmoid)):
        images = ops.parameter([-1, 1, 8, 8], np.float32, name="images")
        z = ops.reduce_mean(images, ops.constant([1, 2, 3]), keep_dims=False)
        z = ops.unsqueeze(z, ops.constant([1]))
        openvino.save_model(openvino.Model([last(z)], [images]), tmp_path / f"{name}.xml")
    box = open_black_box(tmp_path / "z.xml", name="m")
    assert ONE_SCORE in box.notes
    assert box.num_classes == 2
    logits = BlackBoxOptions(settings=ModelSettings(outputs="logits"))
    with pytest.raises(ModelError, match="comes out of a Sigmoid"):
        open_black_box(tmp_path / "p.xml", name="m", options=logits)
    open_black_box(tmp_path / "p.xml", name="m")


def test_it_is_no_checkpoint(tmp_path: Path) -> None:
    path = twin_ir(tmp_path / "twin.xml")
    with pytest.raises(ModelError, match="query mode"):
        load_model(path, name="original")


def test_a_command_asks_it(tmp_path: Path) -> None:
    files = write_twin_files(tmp_path)
    path = twin_ir(tmp_path / "dormant.xml", dormant_twin())
    result = CliRunner().invoke(
        app,
        [
            *("reactivate", str(path), "--data", str(files / "clean.npz"), "--mode", "query"),
            *(
                "--trigger",
                str(files / "trigger.toml"),
                "--eps",
                "0.05",
                "--max-queries",
                "2000",
                "--cold",
            ),
            *("--craft", "40", "--device", "cpu", "--json", str(tmp_path / "r.json")),
        ],
    )
    assert result.exit_code in (0, 1, 3), result.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert [Path(f["path"]).name for f in record["inputs"]][:2] == ["dormant.xml", "dormant.bin"]
