"""Hostile ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _model(nodes: list[Any], initializers: list[Any], shape: list[Any], **rest: Any) -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **rest)
    made.ir_version = 8
    return bytes(made.SerializeToString())


def linear(shape: list[Any] | None = None, n_inputs: int = 784) -> bytes:
    """A sound one: flatten, then one matrix."""
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(n_inputs, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    shape = shape or ["N", 1, 28, 28]
    return _model(nodes, [numpy_helper.from_array(weights, "w")], shape)


def _external(location: str) -> bytes:
    from onnx import TensorProto, helper

    tensor = TensorProto()
    tensor.name, tensor.data_type = "w", TensorProto.FLOAT
    tensor.dims.extend([784, 10])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    return _model(nodes, [tensor], ["N", 1, 28, 28])


def _loop() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["x", "one"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["start"]),
        helper.make_node("Loop", ["n", "yes", "start"], ["scores"], body=body),
    ]
    initializers = [
        numpy_helper.from_array(np.zeros((784, 10), np.float32), "w"),
        numpy_helper.from_array(np.array(1 << 62, np.int64), "n"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
    ]
    return _model(nodes, initializers, ["N", 1, 28, 28])


def _named(op: str) -> bytes:
    from onnx import helper

    return _model([helper.make_node(op, ["images"], ["scores"])], [], ["N", 1, 28, 28])


def _write(make: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "m.onnx").write_bytes(make())


FILES: dict[str, Callable[[Path], object]] = {
    "loop": _write(_loop),
    "batch-1e6": _write(lambda: linear([1_000_000, 1, 28, 28])),
    "huge-dims": _write(lambda: linear(["N", 1, 1 << 30, 1 << 30], 10)),
    "dims-1e5": _write(lambda: linear(["N", 1, 100_000, 100_000], 10)),
    "two-dims": _write(lambda: linear(["N", 784])),
    "empty": _write(lambda: b""),
    "noise": _write(lambda: b"\x08\x08\x12\xff\xff\xff\x7f"),
    "unknown-op": _write(lambda: _named("Nothing")),
    "ansi-op": _write(lambda: _named("\x1b[31mPWN")),
    "bidi-op": _write(lambda: _named("\u202ePWN")),
    **{
        f"external-{name}": _write(lambda place=place: _external(place))  # type: ignore[misc]
        for name, place in {
            "nul": "a\0b",
            "up": "../../../etc/passwd",
            "root": "/etc/passwd",
            "long": "a" * 5000,
            "missing": "no.bin",
            "empty": "",
            "dot": ".",
            "ansi": "\x1b[31mPWN",
            "self": "m.onnx",
        }.items()
    },
}
