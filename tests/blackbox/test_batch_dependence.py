"""Images asked about alone, and among others: real models pass, those that look aside do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bdaudit.blackbox import (
    BlackBox,
    BlackBoxOptions,
    FunctionBlackBox,
    OnnxBlackBox,
    TorchBlackBox,
    check_batch_dependence,
)
from bdaudit.models import wrap_module
from bdaudit.models.preactresnet import preactresnet18
from bdaudit.records import Diagnostic
from tests.blackbox.onnx_graphs import save_graph, twin_onnx
from tests.blackbox.test_base import NET, function_box
from tests.twins import dormant_twin, removed_twin, twin_sample, twin_trigger

onnx = pytest.importorskip("onnx")

TWIN_IMAGES = twin_sample(32, seed=1).images
TWIN_IMAGES[:8] = twin_trigger(TWIN_IMAGES[:8])
COLOUR = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def doubts(box: BlackBox, images: Tensor, *, n: int = 8) -> list[Diagnostic]:
    return check_batch_dependence(box, images[:n], images[n : 2 * n])


def torch_box(network: nn.Module, images: Tensor, **settings: object) -> TorchBlackBox:
    shape = tuple(images.shape[1:])
    model = wrap_module(network, name="net", image_shape=shape, num_classes=None)  # type: ignore[arg-type]
    return TorchBlackBox(model, **settings)  # type: ignore[arg-type]


class UnderAutocast(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.network(images)
        return logits.float()


def vit() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, depth=4
    )
    return nn.Sequential(network)  # bare, its settings would have images resized to 224


def resnet(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return preactresnet18(10, width=width, in_channels=3)


def without_statistics(network: nn.Module) -> nn.Module:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return network


@pytest.mark.parametrize("make", [resnet, vit])
@pytest.mark.parametrize("autocast", [False, True])
def test_real_networks_raise_no_doubt(make: object, autocast: bool) -> None:
    network = make()  # type: ignore[operator]
    box = torch_box(UnderAutocast(network) if autocast else network, COLOUR)
    assert doubts(box, COLOUR) == []
    assert box.n_queries == 7 * 8


@pytest.mark.parametrize("name", ["original", "dormant", "removed", "innocent-1"])
def test_the_demonstrations_models_with_and_without_running_statistics(
    name: str, demo_files: Path
) -> None:
    import numpy as np

    images = torch.from_numpy(np.load(demo_files / "clean.npz")["images"][:32]).float() / 255
    network = preactresnet18(10, width=8, in_channels=1)
    network.load_state_dict(load_file(demo_files / f"{name}.safetensors"))
    for feedback, n in (("scores", 8), ("labels", 16)):
        assert doubts(torch_box(network, images, feedback=feedback), images, n=n) == []
    loose = without_statistics(network)
    for feedback, n in (("scores", 8), ("labels", 16)):
        (doubt,) = doubts(torch_box(loose, images, feedback=feedback), images, n=n)
        assert (doubt.code, doubt.severity) == ("answers_depend_on_batch", "error")


def test_attention_over_the_batch_is_seen() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twin = dormant_twin()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.twin(images)
            weights = (logits @ logits.T / 100).softmax(dim=1)
            return logits + 0.1 * weights @ logits

    (doubt,) = doubts(torch_box(Attending(), TWIN_IMAGES), TWIN_IMAGES)
    assert doubt.severity == "error"
    assert "of their spread" in doubt.message


def test_a_model_that_takes_no_single_image_depends_on_the_batch() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twin = removed_twin()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.twin(images)
            return logits.squeeze(0)

    (doubt,) = doubts(torch_box(Squeezing(), TWIN_IMAGES), TWIN_IMAGES)
    assert doubt.severity == "error"
    assert "cannot be queried about one image alone" in doubt.message


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("batch", ["N", 4, 1])
def test_an_onnxruntime_session_raises_no_doubt(
    tmp_path: Path, batch: int | str, probabilities: bool
) -> None:
    file = twin_onnx(tmp_path / "d.onnx", dormant_twin(), batch=batch, probabilities=probabilities)
    for feedback, n in (("scores", 8), ("labels", 16)):
        box = OnnxBlackBox(file, name="defended", feedback=feedback)
        assert doubts(box, TWIN_IMAGES, n=n) == []
        assert box.n_queries == 7 * n
        box.close()


def beside_others_onnx(path: Path, *, batch: int | str = "N") -> Path:
    """A graph that takes the mean over the batch from every score."""
    from onnx import TensorProto, helper, numpy_helper

    weights = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["bare"]),
        helper.make_node("ReduceMean", ["bare"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["bare", "mean"], ["scores"]),
    ]
    return save_graph(
        path,
        nodes,
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weights, "weights")],
    )


@pytest.mark.parametrize("batch", ["N", 4])
@pytest.mark.parametrize("feedback", ["scores", "labels"])
def test_an_onnx_file_that_looks_aside_is_seen(
    tmp_path: Path, feedback: str, batch: int | str
) -> None:
    box = OnnxBlackBox(
        beside_others_onnx(tmp_path / "d.onnx", batch=batch),
        name="defended",
        feedback=feedback,  # type: ignore[arg-type]
    )
    n = 16 if feedback == "labels" else 8
    (doubt,) = doubts(box, TWIN_IMAGES, n=n)
    assert doubt.severity == "error"
    box.close()


def test_an_onnx_file_asked_one_image_at_a_time_is_steady(tmp_path: Path) -> None:
    box = OnnxBlackBox(
        beside_others_onnx(tmp_path / "d.onnx"),
        name="defended",
        options=BlackBoxOptions(request_size=1),
    )
    assert doubts(box, TWIN_IMAGES) == []
    box.close()


def _function(answer: object, *, feedback: str = "scores", size: int = 256) -> FunctionBlackBox:
    return FunctionBlackBox(
        answer,  # type: ignore[arg-type]
        name="defended",
        num_classes=4,
        image_shape=(1, 8, 8),
        feedback=feedback,  # type: ignore[arg-type]
        batch_size=size,
    )


@pytest.mark.parametrize("size", [2, 3, 5, 256])
def test_neighbours_are_in_every_request_whatever_its_size(size: int) -> None:
    def beside(images: Tensor) -> Tensor:
        scores = NET(images)
        return scores - scores.mean(dim=0)

    (doubt,) = doubts(_function(beside, size=size), TWIN_IMAGES)
    assert doubt.severity == "error"


def test_rounding_is_no_doubt() -> None:
    """Half precision elsewhere, and probabilities to two places that fall either way."""
    turn = iter(range(10_000))

    def half(images: Tensor) -> Tensor:
        scores = NET(images)
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(next(turn)))
        return scores + 0.01 * scores.std() * (noise - 0.5)

    def rounded(images: Tensor) -> Tensor:
        share = (half(images) / 4).softmax(dim=1)
        return (share * 100).round() / 100

    for answer in (half, rounded):
        box = function_box(answer)
        box.ask(TWIN_IMAGES)
        assert doubts(box, TWIN_IMAGES) == []


def test_of_labels_alone_one_that_falls_either_way_is_a_warning() -> None:
    def on_the_edge(images: Tensor) -> Tensor:
        labels = NET(images).argmax(dim=1)
        if len(images) == 1 and bool((images == TWIN_IMAGES[3]).all()):
            return (labels + 1) % 4
        return labels

    (doubt,) = doubts(_function(on_the_edge, feedback="labels"), TWIN_IMAGES, n=16)
    assert doubt.severity == "warning"
    assert "1 of 16 top labels changed" in doubt.message


def test_answers_that_change_anyway_are_not_laid_to_the_batch() -> None:
    draw = torch.Generator().manual_seed(0)

    def random(images: Tensor) -> Tensor:
        return NET(images) + torch.rand((len(images), 4), generator=draw)

    assert doubts(function_box(random), TWIN_IMAGES) == []
