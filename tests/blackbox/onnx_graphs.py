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
