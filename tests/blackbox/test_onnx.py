"""ONNX files through a real onnxruntime, against the same network in torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bdaudit.blackbox import BlackBoxOptions, OnnxBlackBox, open_black_box
from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import ONE_SCORE, ModelSettings
from tests.blackbox.onnx_graphs import move_weights_beside, save_graph, twin_onnx
from tests.twins import original_twin, removed_twin, twin_sample

NET = original_twin()
IMAGES = twin_sample(21, 0).images


def image_input(shape: list[Any], dtype: int = TensorProto.FLOAT, name: str = "images") -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def scores_output(shape: list[Any], name: str = "scores", dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.mark.parametrize(
    "form",
    [{}, {"batch": 8}, {"batch": 1}, {"order": "NHWC"}, {"order": "NHWC", "batch": 4}],
    ids=str,
)
def test_answers_are_the_networks(tmp_path: Path, form: dict[str, Any]) -> None:
    box = open_black_box(twin_onnx(tmp_path / "twin.onnx", NET, **form), name="defended")
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES))
    # What fills a fixed batch is not paid for.
    assert box.n_queries == len(IMAGES)
    assert (box.num_classes, box.image_shape, box.score_kind) == (4, (1, 8, 8), "logits")


def test_eight_bit_inputs(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET, dtype=TensorProto.UINT8)
    box = open_black_box(path, name="defended")
    assert box.grid == 255
    torch.testing.assert_close(box.ask(IMAGES), NET((IMAGES * 255).round() / 255))
    options = BlackBoxOptions(settings=ModelSettings(mean=(0.5,)))
    with pytest.raises(ConfigError, match="8-bit input takes no normalised values"):
        open_black_box(path, name="defended", options=options)


def test_half_precision_inputs(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET, dtype=TensorProto.FLOAT16)
    answers = open_black_box(path, name="defended").ask(IMAGES)
    torch.testing.assert_close(answers, NET(IMAGES.half().float()))


def test_probabilities_and_labels(tmp_path: Path) -> None:
    likely = open_black_box(twin_onnx(tmp_path / "p.onnx", NET, probabilities=True), name="d")
    torch.testing.assert_close(likely.ask(IMAGES), NET(IMAGES).log_softmax(1))
    assert likely.score_kind == "probabilities"
    path = twin_onnx(tmp_path / "l.onnx", NET, labels=True)
    labels = open_black_box(path, name="d", feedback="labels", fallback_num_classes=4)
    assert torch.equal(labels.ask(IMAGES), NET(IMAGES).argmax(1))
    with pytest.raises(ModelError, match="ask for labels only"):
        open_black_box(path, name="d")
    with pytest.raises(ModelError, match="pass num_classes"):
        open_black_box(path, name="d", feedback="labels")


def test_normalisation_is_read_beside_the_file(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    (tmp_path / "model.toml").write_text("mean = [0.25]\nstd = [0.5]\n")
    box = open_black_box(path, name="defended")
    torch.testing.assert_close(box.ask(IMAGES), NET((IMAGES - 0.25) / 0.5))
    assert isinstance(box, OnnxBlackBox)
    assert box.notes == ["read settings from model.toml"]


def test_weights_in_a_side_file_are_part_of_the_digest(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    whole = open_black_box(path, name="defended").identity()
    side = move_weights_beside(path)
    box = open_black_box(path, name="defended")
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES))
    split = box.identity()
    assert split.sha256 != whole.sha256
    # Another model's weights under the same graph file: only the side file differs.
    kept = path.read_bytes()
    twin_onnx(path, removed_twin())
    move_weights_beside(path)
    path.write_bytes(kept)
    (change,) = split.changes(open_black_box(path, name="defended").identity())
    assert change.startswith("sha256")
    side.unlink()
    with pytest.raises(ModelError, match=r"lacks twin.data, which holds its weights"):
        open_black_box(path, name="defended")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "the last byte"),
        ("offset", "-4"),
        ("offset", "9" * 30),
        ("length", "4"),
        ("length", "999999"),
        ("length", "many"),
    ],
)
def test_weights_outside_their_range_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    side = move_weights_beside(path)
    if value == "the last byte":
        value = str(side.stat().st_size - 1)
    model = onnx.load(str(path), load_external_data=False)
    largest = max(model.graph.initializer, key=lambda t: math.prod(t.dims))
    place = _place(largest) | {key: value}
    del largest.external_data[:]
    for name, text in place.items():
        largest.external_data.add(key=name, value=text)
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match=r"inside the|expected whole numbers"):
        open_black_box(path, name="defended")


def test_weights_of_a_file_cut_short_are_refused(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    side = move_weights_beside(path)
    side.write_bytes(side.read_bytes()[:-1])
    with pytest.raises(ModelError, match="inside the"):
        open_black_box(path, name="defended")


def test_a_place_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    move_weights_beside(path)
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="other.data")
    onnx.save(model, str(path))
    with pytest.raises(ModelError, match="twice"):
        open_black_box(path, name="defended")


def _place(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "a\0b", ""])
@pytest.mark.parametrize("place", ["initialiser", "attribute"])
def test_weights_elsewhere_are_not_read(tmp_path: Path, location: str, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    tensor = numpy_helper.from_array(np.zeros((64, 4), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    if place == "attribute":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    path = save_graph(
        folder / "twin.onnx",
        nodes,
        [image_input(["N", 1, 8, 8])],
        [scores_output(["N", 4])],
        [tensor] if place == "initialiser" else [],
    )
    with pytest.raises(ModelError, match="expected its weights in its own folder"):
        open_black_box(path, name="defended")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = twin_onnx(folder / "twin.onnx", NET)
    side = move_weights_beside(path)
    side.rename(tmp_path / "elsewhere")
    side.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="in its own folder"):
        open_black_box(path, name="defended")


def test_several_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["images", "more"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["scores"]),
    ]
    inputs = [image_input(["N", 1, 2, 2]), image_input(["N", 1, 2, 2], name="more")]
    path = save_graph(tmp_path / "two.onnx", nodes, inputs, [scores_output(["N", 4])])
    with pytest.raises(ModelError, match="expected one input that takes images, got 2: images"):
        open_black_box(path, name="defended")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(["N", 64], TensorProto.FLOAT), (["N", 1, 8, 8], TensorProto.INT64)],
)
def test_inputs_that_take_no_images(tmp_path: Path, shape: list[Any], dtype: int) -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["scores"]),
    ]
    path = save_graph(
        tmp_path / "odd.onnx", nodes, [image_input(shape, dtype)], [scores_output(["N", 64])]
    )
    with pytest.raises(ModelError, match="expected one input of images"):
        open_black_box(path, name="defended")


def test_unknown_operators(tmp_path: Path) -> None:
    nodes = [helper.make_node("Teleport", ["images"], ["scores"], domain="nowhere")]
    graph = helper.make_graph(nodes, "g", [image_input(["N", 1, 8, 8])], [scores_output(["N", 4])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "odd.onnx")
    )
    with pytest.raises(ModelError, match=r"onnxruntime .* cannot open it: .*Teleport"):
        open_black_box(tmp_path / "odd.onnx", name="defended")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"\x08\x09"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "junk.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"junk\.onnx"):
        open_black_box(tmp_path / "junk.onnx", name="defended")
    with pytest.raises(ModelError, match="No such file"):
        open_black_box(tmp_path / "missing.onnx", name="defended")


def test_several_outputs_need_a_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["images"], ["features"]),
        helper.make_node("Softmax", ["features"], ["scores"]),
    ]
    outputs = [scores_output(["N", 4], "features"), scores_output(["N", 4])]
    path = save_graph(tmp_path / "two.onnx", nodes, [image_input(["N", 1, 2, 2])], outputs)
    with pytest.raises(ModelError, match="got several among features float32"):
        open_black_box(path, name="defended")
    with pytest.raises(ModelError, match="has no output 'logits'"):
        open_black_box(path, name="defended", options=BlackBoxOptions(output_name="logits"))
    options = BlackBoxOptions(output_name="features")
    box = open_black_box(path, name="defended", options=options)
    images = torch.rand(3, 1, 2, 2)
    assert torch.equal(box.ask(images), images.flatten(1))


def test_free_shapes_are_settled_by_the_user_or_the_sample(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    inputs = [image_input(["N", 3, "H", "W"])]
    path = save_graph(tmp_path / "free.onnx", nodes, inputs, [scores_output(["N", 3])])
    with pytest.raises(ModelError, match="pass image_shape"):
        open_black_box(path, name="defended")
    box = open_black_box(path, name="defended", fallback_image_shape=(3, 5, 6))
    images = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(box.ask(images), images.mean((2, 3)))
    wrong = BlackBoxOptions(settings=ModelSettings(image_shape=(1, 8, 8)))
    with pytest.raises(ModelError, match=r"takes images of shape \(1, 8, 8\), got images"):
        open_black_box(path, name="defended", options=wrong)
    with pytest.raises(ModelError, match="pass the right num_classes"):
        open_black_box(
            path,
            name="defended",
            options=BlackBoxOptions(settings=ModelSettings(num_classes=10)),
            fallback_image_shape=(3, 5, 6),
        )


def test_without_a_cuda_provider_it_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "twin.onnx", NET)
    box = OnnxBlackBox(path, name="defended", device="cuda")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert has_cuda == (box.notes == [])
    torch.testing.assert_close(box.ask(IMAGES), NET(IMAGES), rtol=1e-3, atol=1e-3)


def test_resizing_is_not_silently_left_out(tmp_path: Path) -> None:
    options = BlackBoxOptions(settings=ModelSettings(input_size=(16, 16)))
    with pytest.raises(ConfigError, match="resizes none"):
        open_black_box(twin_onnx(tmp_path / "t.onnx", NET), name="defended", options=options)


def one_score_onnx(path: Path, *last: str, dtype: int = TensorProto.FLOAT) -> Path:
    """Write a network whose one logit an image is 8 (mean - .5), then other operators."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Sub", ["mean", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "eight"], ["t0"]),
    ]
    for k, operator in enumerate(last):
        attributes = {"to": dtype} if operator == "Cast" else {}
        nodes.append(helper.make_node(operator, [f"t{k}"], [f"t{k + 1}"], **attributes))
    weights = [
        numpy_helper.from_array(np.float32(value), name)
        for name, value in (("half", 0.5), ("eight", 8.0))
    ]
    output = scores_output(["N", 1], f"t{len(last)}", dtype)
    return save_graph(path, nodes, [image_input(["N", 1, 8, 8])], [output], weights)


LIGHT_AND_DARK = torch.linspace(0.02, 0.98, 12).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
LOGITS = 8 * (LIGHT_AND_DARK.mean((1, 2, 3)) - 0.5)[:, None]


@pytest.mark.parametrize("last", [(), ("Sigmoid",), ("Sigmoid", "Identity", "Clip")], ids=str)
def test_one_score_is_two_classes(tmp_path: Path, last: tuple[str, ...]) -> None:
    path = one_score_onnx(tmp_path / "one.onnx", *last)
    box = open_black_box(path, name="defended")
    assert box.num_classes == 2
    assert box.notes == [ONE_SCORE]
    answers = box.ask(LIGHT_AND_DARK)
    two = torch.cat((torch.zeros_like(LOGITS), LOGITS), dim=1)
    torch.testing.assert_close(answers.softmax(1), two.softmax(1), rtol=1e-5, atol=1e-6)
    assert answers.argmax(1).tolist() == [0] * 6 + [1] * 6
    if not last:
        torch.testing.assert_close(answers, two)
    assert box.score_kind == ("probabilities" if last else "logits")
    assert box.notes == [ONE_SCORE]  # once
    labels = open_black_box(path, name="defended", feedback="labels")
    assert labels.ask(LIGHT_AND_DARK).tolist() == [0] * 6 + [1] * 6


def test_one_probability_is_not_declared_a_logit(tmp_path: Path) -> None:
    declared = BlackBoxOptions(settings=ModelSettings(outputs="logits"))
    for last in (("Sigmoid",), ("Sigmoid", "Cast")):
        path = one_score_onnx(tmp_path / "one.onnx", *last)
        with pytest.raises(ModelError, match="comes out of a Sigmoid"):
            open_black_box(path, name="defended", options=declared)
    for last in ((), ("Sigmoid", "Neg")):
        path = one_score_onnx(tmp_path / "one.onnx", *last)
        assert open_black_box(path, name="defended", options=declared).num_classes == 2


def test_one_score_of_other_class_counts_is_refused(tmp_path: Path) -> None:
    path = one_score_onnx(tmp_path / "one.onnx")
    declared = BlackBoxOptions(settings=ModelSettings(num_classes=10))
    with pytest.raises(ModelError, match=r"expected scores \(1, 10\) for one image, got \(1, 1\)"):
        open_black_box(path, name="defended", options=declared)
    # What the file says counts more than what another model has.
    assert open_black_box(path, name="defended", fallback_num_classes=10).num_classes == 2


def test_whole_numbers_are_labels_also_one_an_image(tmp_path: Path) -> None:
    path = one_score_onnx(
        tmp_path / "one.onnx", "Sigmoid", "Round", "Cast", dtype=TensorProto.INT64
    )
    box = open_black_box(path, name="d", feedback="labels", fallback_num_classes=2)
    assert box.ask(LIGHT_AND_DARK).tolist() == [0] * 6 + [1] * 6
    assert box.notes == []
