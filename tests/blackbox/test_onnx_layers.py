"""Convolutions of ONNX files against the same network in torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from bdaudit.blackbox import OnnxBlackBox, fold_batch_norms, read_onnx_layers
from bdaudit.errors import ModelError
from bdaudit.existence import existence_coefficient
from bdaudit.foundation.progress import finish
from bdaudit.models import LoadedModel, wrap_module
from bdaudit.triggers import poison
from tests.auditing.test_audit import TRIGGER, another_innocent
from tests.blackbox.onnx_graphs import twin_onnx
from tests.twins import dormant_twin, original_twin, twin_sample

IMAGES = twin_sample(40, 0).images


class Residual(nn.Module):
    """Two branches, a bare convolution, one with a bias before its batch norm, one without."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width, width, 1)
        self.linear = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.bn2(self.conv2(x)) + self.shortcut(x)
        logits: Tensor = self.linear(torch.relu(x).mean((2, 3)))
        return logits


def residual(seed: int) -> LoadedModel:
    """Return one whose batch norms are far from doing nothing."""
    torch.manual_seed(seed)
    net = Residual()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 3.0)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_var, 0.2, 3.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
    net.eval().requires_grad_(False)
    return wrap_module(net, name=f"residual {seed}", image_shape=(1, 8, 8))


def exported(path: Path, model: LoadedModel) -> OnnxBlackBox:
    """Export it as people do, with torch's own exporter."""
    torch.onnx.export(
        model.classifier,
        (IMAGES[:2],),
        path,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    return OnnxBlackBox(path, name="defended")


def maps_of(network: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, given, output, name=name: maps.__setitem__(name, output)
        )
        for name in names
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize("form", [{}, {"batch": 7}, {"order": "NHWC"}], ids=str)
def test_the_coefficient_is_that_of_the_torch_model(tmp_path: Path, form: dict[str, Any]) -> None:
    original = wrap_module(original_twin(), name="original", image_shape=(1, 8, 8))
    box = OnnxBlackBox(twin_onnx(tmp_path / "d.onnx", dormant_twin(), **form), name="defended")
    layers = read_onnx_layers(box, original)
    assert layers.folded == ()
    pool = poison(twin_sample(60, 0), TRIGGER, 4)

    def coefficient(defended: nn.Module) -> float:
        (found,) = finish(
            existence_coefficient(
                original.classifier,
                defended,
                [("innocent", another_innocent(1))],
                clean=pool.clean,
                triggered=pool.triggered,
                generator=torch.Generator().manual_seed(0),
            )
        )
        assert found.value is not None
        return found.value

    assert coefficient(layers.network) == pytest.approx(coefficient(dormant_twin()), abs=1e-5)
    assert box.n_queries == 0


def test_every_convolution_of_an_exported_file_is_read(tmp_path: Path) -> None:
    model = residual(0)
    layers = read_onnx_layers(exported(tmp_path / "d.onnx", model), residual(1))
    assert dict(layers.folded) == {"conv1": "bn1", "conv2": "bn2"}
    names = ["conv1", "conv2", "shortcut"]
    read = maps_of(layers.network, names, IMAGES)
    folded = fold_batch_norms(model, layers.folded)
    torch.testing.assert_close(folded(IMAGES), model.classifier(IMAGES))
    expected = maps_of(folded.get_submodule("network"), names, IMAGES)
    for name in names:
        torch.testing.assert_close(read[name], expected[name], atol=1e-4, rtol=1e-4)
    # Without folding, the maps are others: the difference is worth the trouble.
    bare = maps_of(model.network, names, IMAGES)
    assert not torch.allclose(read["conv2"], bare["conv2"], atol=0.1)
    assert isinstance(model.network.get_submodule("bn1"), nn.BatchNorm2d), "the model is left alone"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    box = OnnxBlackBox(twin_onnx(tmp_path / "d.onnx", dormant_twin()), name="defended")
    with pytest.raises(ModelError, match="expected the 3 convolutions of the original, got 3"):
        read_onnx_layers(box, residual(0))


def test_a_file_without_convolutions_is_refused(tmp_path: Path) -> None:
    path = twin_onnx(tmp_path / "d.onnx", dormant_twin())
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.op_type = "Identity" if node.op_type == "Conv" else node.op_type
        if node.op_type == "Identity":
            del node.input[1:]
            del node.attribute[:]
    # The linear layer now sees the image itself.
    model.graph.initializer[5].CopyFrom(
        onnx.numpy_helper.from_array(
            dormant_twin().linear.weight[:, :64].numpy(), model.graph.initializer[5].name
        )
    )
    onnx.save(model, str(path))
    box = OnnxBlackBox(path, name="defended")
    with pytest.raises(ModelError, match="no convolution"):
        read_onnx_layers(box, residual(0))


def test_a_model_that_folding_would_change_is_refused() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Residual()

        def forward(self, images: Tensor) -> Tensor:
            inner = self.inner
            raw = inner.conv1(images)
            logits: Tensor = inner.linear((raw + inner.bn1(raw)).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    net = Reused().eval().requires_grad_(False)
    nn.init.constant_(net.inner.bn1.weight, 4.0)
    model = wrap_module(net, name="reference", image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="other answers"):
        fold_batch_norms(model, [("inner.conv1", "inner.bn1")])
    with pytest.raises(ModelError, match=r"expected the convolution inner\.nothing"):
        fold_batch_norms(model, [("inner.nothing", "inner.bn1")])


def quantised(path: Path, model: LoadedModel, form: str) -> OnnxBlackBox:
    """Quantise an exported file as people do, with onnxruntime's own tools."""
    from onnxruntime import quantization

    exported(path.with_suffix(".float.onnx"), model)

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(IMAGES.split(10))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_static(
            str(path.with_suffix(".float.onnx")),
            str(path),
            Images(),
            quant_format=quantization.QuantFormat[form],
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return OnnxBlackBox(path, name="defended")


def test_a_quantised_file_is_asked_and_its_convolutions_are_read(tmp_path: Path) -> None:
    """QDQ: 8-bit weights that a node turns into floats again, as onnxruntime writes them."""
    model = residual(0)
    box = quantised(tmp_path / "d.onnx", model, "QDQ")
    kinds = {node.op_type for node in box.load_graph().graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    expected = model.classifier(IMAGES)
    spread = float(expected.std())
    assert float((box.ask(IMAGES) - expected).abs().mean()) < 0.1 * spread
    layers = read_onnx_layers(box, residual(1))
    assert "3 have kernels of 8 bits (QDQ)" in layers.note
    assert dict(layers.folded) == {"conv1": "bn1", "conv2": "bn2"}
    names = ["conv1", "conv2", "shortcut"]
    read = maps_of(layers.network, names, IMAGES)
    folded = fold_batch_norms(model, layers.folded).get_submodule("network")
    for name, map_ in maps_of(folded, names, IMAGES).items():
        assert float((read[name] - map_).abs().mean()) < 0.1 * float(map_.std())
        assert not torch.equal(read[name], map_)  # it is the quantised one


def test_operators_of_integers_are_asked_and_have_no_maps_to_read(tmp_path: Path) -> None:
    model = residual(0)
    box = quantised(tmp_path / "d.onnx", model, "QOperator")
    assert "QLinearConv" in {node.op_type for node in box.load_graph().graph.node}
    expected = model.classifier(IMAGES)
    assert float((box.ask(IMAGES) - expected).abs().mean()) < 0.1 * float(expected.std())
    with pytest.raises(ModelError, match="no convolution whose maps could be read"):
        read_onnx_layers(box, residual(1))
