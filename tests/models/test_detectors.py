"""Checkpoints of object detectors open as classifiers of marked images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bdaudit.detection import mark
from bdaudit.detection.asked import Asked
from bdaudit.detection.small import SMALL_DETECTORS, small_detector
from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import (
    ModelSettings,
    build_network,
    inspect_checkpoint,
    load_model,
    save_model,
    wrap_module,
)
from bdaudit.models.architectures import blueprint, known_detectors
from bdaudit.models.fingerprint import match_blueprint
from bdaudit.models.fresh import fresh_classifier

CLASSES = 5


def images() -> Tensor:
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return mark(pictures, torch.tensor([[8.0, 8, 32, 32]]).repeat(2, 1))


@pytest.mark.parametrize("kind", SMALL_DETECTORS)
def test_a_small_detector_is_recognised_by_its_tensors(kind: str, tmp_path: Path) -> None:
    network = small_detector(kind, 4, CLASSES).eval()
    path = tmp_path / "detector.pt"
    torch.save(network.state_dict(), path)
    model = load_model(path, name="defended", fallback_image_shape=(4, 48, 48))
    assert (model.arch, model.num_classes) == (f"bdaudit/{kind}_w4", CLASSES)
    assert model.image_shape == (4, 48, 48)
    assert not any("normalisation" in note for note in model.notes)
    assert isinstance(model.network, Asked)
    with torch.no_grad():
        assert torch.equal(model.classifier(images()), network(images()))
    assert inspect_checkpoint(path).guesses[0].arch == f"bdaudit/{kind}_w4"


def test_what_a_detector_needs_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    network = small_detector("fcos", 4, CLASSES)
    shape = (4, 48, 48)
    save_model(
        path, network, arch="bdaudit/fcos_w4", num_classes=CLASSES, image_shape=shape,
        score_threshold=0.3,
    )  # fmt: skip
    model = load_model(path, name="defended")
    assert (model.image_shape, model.network.score_threshold) == (shape, 0.3)
    path.with_suffix(".toml").write_text("score_threshold = 0.6\n")
    assert load_model(path, name="defended").network.score_threshold == 0.3  # the file's first
    again = wrap_module(model.classifier, name="again", image_shape=shape)
    assert again.network.score_threshold == 0.3
    for wrong in (0, 1, -0.5):
        with pytest.raises(ConfigError, match="score_threshold"):
            ModelSettings(score_threshold=wrong)


def test_a_detector_of_the_users_own_factory_is_asked_too(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from torchvision.models.detection import FCOS\n"
        "from torchvision.models.detection.anchor_utils import AnchorGenerator\n"
        "from bdaudit.detection.small import SmallBackbone\n"
        "def make(num_classes):\n"
        "    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)\n"
        "    return FCOS(SmallBackbone(16), num_classes, 64, 64, anchor_generator=anchors)\n"
    )
    network = build_network(f"{code}:make", num_classes=CLASSES)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    model = load_model(
        tmp_path / "mine.pt",
        name="mine",
        arch=f"{code}:make",
        num_classes=CLASSES,
        image_shape=(4, 48, 48),
    )
    assert isinstance(model.network, Asked)
    assert model.num_classes == CLASSES


def test_what_does_not_fit_a_detector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    torch.save(small_detector("retinanet", 4, CLASSES).state_dict(), path)
    with pytest.raises(ModelError, match=r"task = 'detection'.*image_shape=\(4, 32, 32\)"):
        load_model(path, name="defended", image_shape=(3, 32, 32))
    with pytest.raises(ModelError, match="leave out mean and std"):
        load_model(path, name="defended", mean=(0.5,), std=(0.5,))
    with pytest.raises(ModelError, match="leave out outputs"):
        load_model(path, name="defended", outputs="probabilities")
    with pytest.raises(ModelError, match=r"detector\.pt\): score_threshold: the detector itself"):
        load_model(path, name="defended", score_threshold=0.01)
    with pytest.raises(ModelError, match="expected pictures of 3 channels"):
        build_network("bdaudit/fcos_w4", num_classes=3, in_channels=1)
    with pytest.raises(ModelError, match="did you mean"):
        build_network("torchvision/fcos_resnet5_fpn", num_classes=3)
    plain = build_network("bdaudit/preactresnet18_w2", num_classes=3)
    with pytest.raises(ModelError, match="this network is none"):
        wrap_module(plain, name="plain", image_shape=(3, 32, 32), score_threshold=0.5)


def test_a_detector_is_not_trained_anew_from_answers() -> None:
    model = wrap_module(
        small_detector("fcos", 4, CLASSES), name="original", image_shape=(4, 48, 48)
    )
    with pytest.raises(ModelError, match="--reference"):
        fresh_classifier(model, generator=torch.Generator())


def test_all_box_detectors_of_torchvision_are_known() -> None:
    assert len(known_detectors()) == 9
    plan = blueprint("torchvision/fcos_resnet50_fpn")
    assert plan.stem == "backbone.body.conv1.weight"
    assert plan.head == {f"head.classification_head.cls_logits.{n}": 1 for n in ("weight", "bias")}
    heads = blueprint("bdaudit/ssd_w4").head
    assert set(heads.values()) == {4}
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in plan.shapes.items()}
    match = match_blueprint(plan, tensors)
    assert (match.fits, match.num_classes, match.in_channels) == (True, 7, 3)


def test_names_of_an_older_torchvision_are_read(tmp_path: Path) -> None:
    network = small_detector("fasterrcnn", 4, CLASSES).eval()
    stored = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): tensor
        for name, tensor in network.state_dict().items()
    }
    torch.save(stored, tmp_path / "old.pt")
    model = load_model(tmp_path / "old.pt", name="old", arch="bdaudit/fasterrcnn_w4")
    assert "renamed 2 tensors that an older torchvision wrote" in model.notes
    with torch.no_grad():
        assert torch.equal(model.classifier(images()), network(images()))
