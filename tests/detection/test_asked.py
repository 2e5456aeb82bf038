"""A detector asked about a box answers what its own list of detections says about it."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from bdaudit.detection import NOTHING, mark
from bdaudit.detection.asked import Asked, as_asked, overlaps, score_boxes
from bdaudit.detection.candidates import candidates, kind_of
from bdaudit.detection.small import SMALL_DETECTORS, small_detector
from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import build_network

CLASSES, SIDE = 4, 48


@pytest.fixture(scope="module", params=SMALL_DETECTORS)
def detector(request: pytest.FixtureRequest) -> Asked:
    """A tiny detector with scores on both sides of .5 and boxes of all sizes."""
    torch.manual_seed(3)
    network = small_detector(request.param, 4, CLASSES).eval()
    heads = [network.roi_heads.box_predictor] if hasattr(network, "roi_heads") else [network.head]
    with torch.no_grad():
        for name, parameter in heads[0].named_parameters():
            if "cls" in name or "classification_head.module" in name:
                scale, shift = (2.0, -1.0) if "bias" in name else (0.7, 0.0)
                parameter.copy_(torch.randn(parameter.shape) * scale + shift)
            elif "bbox_reg" in name:  # of FCOS: how far the sides are, in strides
                parameter.copy_(torch.rand(parameter.shape) * (1.2 if "bias" in name else 0.1))
    return network


def questions() -> tuple[Tensor, Tensor]:
    """Twenty-four pictures of 48 x 40 pixels and a box in each."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand(24, 3, SIDE, 40, generator=generator)
    start = torch.randint(0, 16, (24, 2), generator=generator)
    size = torch.randint(14, 30, (24, 2), generator=generator)
    ends = (start + size).minimum(torch.tensor([40, SIDE]))
    return pictures, torch.cat((start, ends), dim=1).float()


def without_limits(detector: Asked) -> Asked:
    """A copy that reports every box it considers."""
    everything = copy.deepcopy(detector)
    owner = everything.roi_heads if hasattr(everything, "roi_heads") else everything
    owner.score_thresh, owner.nms_thresh = 0.0, 1.0
    owner.topk_candidates = owner.detections_per_img = 10**6
    return everything


def by_its_list(detector: Asked, pictures: Tensor, boxes: Tensor) -> Tensor:
    found = detector.detect(pictures)
    lists = ([one[key] for one in found] for key in ("boxes", "labels", "scores"))
    return score_boxes(*lists, boxes, num_classes=CLASSES)


@pytest.mark.parametrize("resized", [False, True], ids=["own size", "resized"])
def test_the_answer_is_the_best_of_all_boxes_that_the_detector_considers(
    detector: Asked, resized: bool
) -> None:
    detector = without_limits(detector)
    if resized:
        fixed = {"fixed_size": (64, 64), "size_divisible": 1} if kind_of(detector) == "SSD" else {}
        detector.transform = GeneralizedRCNNTransform(64, 96, [0.5] * 3, [0.25] * 3, **fixed)
    pictures, boxes = questions()
    with torch.no_grad():
        answers = detector(mark(pictures, boxes))
    expected = by_its_list(detector, pictures, boxes)
    assert torch.allclose(answers, expected, atol=1e-3)
    there = answers[:, 1:] > -20
    assert there.any()
    assert (answers[:, 1:][there] > 0).any()
    assert (answers[:, 1:][there] < 0).any()


def test_suppression_only_takes_away_what_a_better_box_of_the_class_covers(
    detector: Asked,
) -> None:
    pictures, boxes = questions()
    with torch.no_grad():
        ours = detector(mark(pictures, boxes))
    listed = by_its_list(detector, pictures, boxes)
    found = detector.detect(pictures)
    for row in (ours.argmax(dim=1) != listed.argmax(dim=1)).nonzero().flatten().tolist():
        label, score = int(ours[row].argmax()), ours[row].max().sigmoid()
        same = found[row]["labels"] == label
        assert (found[row]["scores"][same] >= score - 1e-5).any()


def test_gradients_reach_the_pixels_and_not_the_marks(detector: Asked) -> None:
    pictures, boxes = questions()
    images = mark(pictures, boxes).requires_grad_()
    answers = detector(images)
    answers[:, 1:].sum().backward()
    gradient = images.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient[:, :3].abs().sum() > 0
    assert gradient[:, 3].abs().sum() == 0
    there = answers.detach()[:, 1:].gt(-20).any(dim=1)
    assert (gradient[:, :3].abs().amax(dim=(1, 2, 3))[~there] == 0).all()


def test_it_is_copied_pickled_and_trained_like_any_network(detector: Asked) -> None:
    images = mark(*questions())
    copied = copy.deepcopy(detector)
    restored = pickle.loads(pickle.dumps(detector))
    with torch.no_grad():
        answers = detector(images)
        assert torch.equal(copied(images), answers)
        assert torch.equal(restored(images), answers)
    copied.train()
    before = copied.backbone.stem[1].running_mean.clone()
    nn.functional.cross_entropy(copied(images), torch.ones(24, dtype=torch.int64)).backward()
    assert not torch.equal(copied.backbone.stem[1].running_mean, before)
    moved = [name for name, p in copied.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("backbone" in name for name in moved)
    assert any("cls" in name or "classification" in name for name in moved)
    copied.detect(images[:1, :3])
    assert all(module.training for module in copied.modules())
    losses = copied.losses(
        [images[0, :3]], [{"boxes": questions()[1][:1], "labels": torch.ones(1).long()}]
    )
    assert sum(losses.values()).requires_grad


def test_an_empty_mark_asks_about_nothing(detector: Asked) -> None:
    images = mark(*questions())
    images[:, 3] = 0
    with torch.no_grad():
        answers = detector(images)
    assert answers[:, NOTHING].abs().max() < 1e-4
    assert (answers[:, 1:] == -20).all()


def test_scores_next_to_one_keep_their_gradient() -> None:
    detector = small_detector("ssd", 4, CLASSES).eval()
    with torch.no_grad():
        for layer in detector.head.classification_head.module_list:
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.0, 18.0, 0.0, 0.0]).repeat(4))
    images = mark(*questions()).requires_grad_()
    answers = detector(images)
    there = answers[:, 1] > -20
    assert torch.allclose(answers[there, 1], torch.tensor(18 - math.log(3)), atol=1e-4)
    log_scores = candidates(detector, images[:1, :3]).log_scores
    assert (log_scores[..., 1] < 0).all()


def test_lists_are_answered_by_the_best_box_that_overlaps_by_half() -> None:
    asked = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 10], [20, 20, 30, 30]])
    labels, scores = torch.tensor([1, 1, 2, 2]), torch.tensor([0.6, 0.9, 0.2, 0.99])
    empty = torch.zeros(0)
    answers = score_boxes(
        [boxes, empty.view(0, 4)], [labels, empty.long()], [scores, empty], asked,
        num_classes=3, score_threshold=0.4,
    )  # fmt: skip
    expected = [math.log(0.4 / 0.6), math.log(0.6 / 0.4), math.log(0.2 / 0.8)]
    assert answers[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert answers[1].tolist() == pytest.approx([expected[0], -20, -20], abs=1e-4)
    assert overlaps(boxes[None], asked[:1])[0].tolist() == pytest.approx([0.5, 0.49, 1, 0])


def test_a_score_that_reaches_the_threshold_counts() -> None:
    box, number = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([2])
    for threshold in (0.3, 0.5, 0.9):
        score = torch.tensor([threshold])
        answers = score_boxes(
            [box], [number], [score], box, num_classes=3, score_threshold=threshold
        )
        assert int(answers.argmax()) == 2


def test_what_cannot_be_asked_is_refused() -> None:
    detector = small_detector("fcos", 4, CLASSES)
    with pytest.raises(ConfigError, match="score_threshold: expected a number from"):
        as_asked(detector, score_threshold=1.0)
    with pytest.raises(ModelError, match=r"reports nothing below a score of 0\.05"):
        as_asked(detector, score_threshold=0.01)
    with pytest.raises(ModelError, match="expected an object detector of torchvision"):
        as_asked(build_network("bdaudit/preactresnet18_w2", num_classes=4))
    with pytest.raises(ModelError, match="expected marked images"):
        detector(torch.rand(2, 3, SIDE, SIDE))
