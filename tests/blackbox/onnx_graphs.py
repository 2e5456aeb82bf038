"""Small ONNX files, written node by node, so that what they must answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.twins import IMAGE_SHAPE, TwinNet

OPSETS = [helper.make_opsetid("", 17)]


def save_graph(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
) -> Path:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    # An IR version that every supported onnxruntime reads.
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=9), str(path))
    return path


def twin_onnx(
    path: Path,
    net: TwinNet,
    *,
    batch: int | str = "N",
    order: str = "NCHW",
    dtype: int = TensorProto.FLOAT,
    probabilities: bool = False,
    labels: bool = False,
) -> Path:
    """Write a twin network as an ONNX file, with its input laid out as asked.

    Of a twin with one output `probabilities` are its sigmoids.
    """
    channels, height, width = IMAGE_SHAPE
    sides = (channels, height, width) if order == "NCHW" else (height, width, channels)
    nodes, at = [], "images"

    def then(op: str, *operands: str, **attributes: Any) -> None:
        nonlocal at
        nodes.append(helper.make_node(op, [at, *operands], [f"t{len(nodes)}"], **attributes))
        at = f"t{len(nodes) - 1}"

    if dtype != TensorProto.FLOAT:
        then("Cast", to=TensorProto.FLOAT)
    if dtype == TensorProto.UINT8:
        then("Div", "max")
    if order == "NHWC":
        then("Transpose", perm=[0, 3, 1, 2])
    for layer in ("conv1", "layer1.conv1", "layer1.conv2"):
        bias = [f"{layer}.bias"] if f"{layer}.bias" in net.state_dict() else []
        then("Conv", f"{layer}.weight", *bias, pads=[1, 1, 1, 1])
        then("Relu")
    then("Flatten")
    then("Gemm", "linear.weight", "linear.bias", transB=1)
    if probabilities and net.linear.out_features == 1:
        then("Sigmoid")
    elif probabilities:
        then("Softmax", axis=1)
    if labels:
        then("ArgMax", axis=1, keepdims=0)
    weights = [numpy_helper.from_array(t.numpy(), name) for name, t in net.state_dict().items()]
    weights.append(numpy_helper.from_array(np.float32(255.0), "max"))
    n_scores = net.linear.out_features
    kind, shape = (TensorProto.INT64, [batch]) if labels else (TensorProto.FLOAT, [batch, n_scores])
    return save_graph(
        path,
        nodes,
        [helper.make_tensor_value_info("images", dtype, [batch, *sides])],
        [helper.make_tensor_value_info(at, kind, shape)],
        weights,
    )


def move_weights_beside(path: Path, name: str = "twin.data") -> Path:
    """Rewrite an ONNX file with its weights in a side file; return the side file."""
    model = onnx.load(str(path))
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        location=name,
        size_threshold=0,
        all_tensors_to_one_file=True,
    )
    return path.with_name(name)


def torch_answers(net: TwinNet, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(images)


FINDER_BOXES = ((0.0, 0.0, 4.0, 8.0), (4.0, 0.0, 8.0, 8.0))


def finder(pictures: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Find class 1 in the left half by how red it is, class 2 in the right half by how green."""
    scores = torch.stack(
        (pictures[:, 0, :, :4].mean((1, 2)), pictures[:, 1, :, 4:].mean((1, 2))), 1
    )
    return [
        {"boxes": torch.tensor(FINDER_BOXES), "labels": torch.tensor([1, 2]), "scores": row}
        for row in scores
    ]


def finder_onnx(path: Path, *, alone: bool = False, form: str = "three") -> Path:
    """Write `finder` as an ONNX file of one picture, (3, 8, 8) where `alone`, else (1, 3, 8, 8).

    Args:
        path: Where to.
        alone: Whether its input has no dimension for several pictures.
        form: Of its answer: "three" outputs, "rows" (1, 2, 6) of box, score and label, or "scores"
            alone.
    """
    nodes = []
    at = "images"
    if alone:
        nodes.append(helper.make_node("Unsqueeze", ["images", "first"], ["batch"]))
        at = "batch"
    for name in ("red", "green"):
        ends = [f"{name}.from", f"{name}.to", "axes"]
        nodes.append(helper.make_node("Slice", [at, *ends], [f"{name}.part"]))
        nodes.append(helper.make_node("ReduceMean", [f"{name}.part"], [f"{name}.mean"]))
    weights = [
        numpy_helper.from_array(np.array([0]), "first"),
        numpy_helper.from_array(np.array([1, 3]), "axes"),
        numpy_helper.from_array(np.array([1, 2, 1]), "column"),
        numpy_helper.from_array(np.array([2]), "pair"),
        numpy_helper.from_array(np.array([FINDER_BOXES], np.float32), "known"),
        numpy_helper.from_array(np.array([[1, 2]]), "numbers"),
        numpy_helper.from_array(np.array([[[1.0], [2.0]]], np.float32), "number column"),
    ]
    for name, channel, left in (("red", 0, 0), ("green", 1, 4)):
        weights.append(numpy_helper.from_array(np.array([channel, left]), f"{name}.from"))
        weights.append(numpy_helper.from_array(np.array([channel + 1, left + 4]), f"{name}.to"))
    means = ["red.mean", "green.mean"]
    nodes += [
        helper.make_node("Concat", means, ["both"], axis=1),
        helper.make_node("Reshape", ["both", "column"], ["score column"]),
        helper.make_node("Squeeze", ["score column", "pair"], ["scores"]),
        helper.make_node("Identity", ["known"], ["boxes"]),
        helper.make_node("Identity", ["numbers"], ["labels"]),
        helper.make_node("Concat", ["known", "score column", "number column"], ["rows"], axis=2),
    ]
    kinds = {
        "boxes": (TensorProto.FLOAT, [1, 2, 4]),
        "labels": (TensorProto.INT64, [1, 2]),
        "scores": (TensorProto.FLOAT, [1, 2]),
        "rows": (TensorProto.FLOAT, [1, 2, 6]),
    }
    given = {"three": ["boxes", "labels", "scores"], "rows": ["rows"], "scores": ["scores"]}[form]
    sides = [3, 8, 8] if alone else [1, 3, 8, 8]
    return save_graph(
        path,
        nodes,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(name, *kinds[name]) for name in given],
        weights,
    )
