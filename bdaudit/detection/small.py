"""Small object detectors for small pictures: torchvision's own, on a backbone of any width.

They are for pictures of about 64 to 160 pixels, which go in at their own size, and train on a
processor's core within minutes. Objects are looked for at strides 8, 16 and 32: of a picture of 96
pixels those are maps of 12, 6 and 3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import gcd
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import (
    FCOSClassificationHead,
    FCOSHead,
    FCOSRegressionHead,
)
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from bdaudit.detection.asked import Asked, as_asked

__all__ = ["SMALL_DETECTORS", "SmallBackbone", "small_detector"]

SMALL_DETECTORS = ("fcos", "retinanet", "ssd", "fasterrcnn")
"""Kinds of small detectors, by the first part of their names."""

_STAGES = (1, 2, 4, 4)  # channels in units of the width, of the maps at strides 4, 8, 16 and 32
_STRIDES = (8, 16, 32)  # of the maps that objects are looked for in
_PYRAMID = 2  # channels of each of these, in units of the width
_SIZES = (20, 36, 64)  # of the objects that anchors stand for, in pixels, by stride
_RATIOS = (0.5, 1.0, 2.0)
_HIDDEN = 8  # neurons of Faster R-CNN's box head, in units of the width
_MEAN, _STD = [0.5] * 3, [0.25] * 3
_PROPOSALS_TRAINED, _PROPOSALS_ASKED = 100, 50
_LEAST_SCORE = 0.05
_SIDE = 96  # of pictures for which SSD, whose boxes grow with the picture, has those sizes


class _OwnSize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Normalise and pad, but leave pictures at their own size."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class _Block(nn.Module):
    """Two 3x3 convolutions around which the input is added; the first may halve the map."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        summed: Tensor = self.relu(out + self.downsample(x))
        return summed


class SmallBackbone(nn.Module):
    """A residual network of four stages of one block, and a feature pyramid over the last three.

    The stem, two 3x3 convolutions of stride 2, keeps most of the cost away from the full size.

    Source: He et al., "Deep Residual Learning" (CVPR 2016); Lin et al., "Feature Pyramid Networks
    for Object Detection" (CVPR 2017).

    Args:
        width: Channels of the map at stride 4; twice, four and four times as many behind it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [share * width for share in _STAGES]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        before = [width, *channels[:-1]]
        self.stages = nn.ModuleList(
            _Block(ins, outs, 1 if index == 0 else 2)
            for index, (ins, outs) in enumerate(zip(before, channels, strict=True))
        )
        self.out_channels = _PYRAMID * width
        self.fpn = FeaturePyramidNetwork(channels[1:], self.out_channels, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised pictures (N, 3, H, W) to maps at strides 8, 16 and 32, by "0" to "2"."""
        x = self.stages[0](self.stem(x))
        maps = OrderedDict()
        for index, stage in enumerate(self.stages[1:]):
            x = stage(x)
            maps[str(index)] = x
        pyramid: dict[str, Tensor] = self.fpn(maps)
        return pyramid


def small_detector(kind: str, width: int, num_classes: int) -> Asked:
    """Build a small detector with fresh weights.

    Args:
        kind: One of `SMALL_DETECTORS`.
        width: Channels of the backbone at stride 4, 1 or more.
        num_classes: Classes with the background among them.

    Returns:
        An FCOS, RetinaNet, SSD or Faster R-CNN of torchvision that answers marked images.
    """
    build: dict[str, Callable[[SmallBackbone, int], Any]] = {
        "fcos": _fcos,
        "retinanet": _retinanet,
        "ssd": _ssd,
        "fasterrcnn": _faster_rcnn,
    }
    detector = build[kind](SmallBackbone(width), num_classes)
    detector.transform = _OwnSize(
        1, 1, _MEAN, _STD, size_divisible=detector.transform.size_divisible
    )
    return as_asked(detector)


class _SmallFcosHead(FCOSHead):  # type: ignore[misc]  # torchvision has no types
    """FCOS's head of two convolutions, its groups fit to few channels."""

    def __init__(self, channels: int, num_classes: int) -> None:
        nn.Module.__init__(self)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(
            channels, 1, num_classes, num_convs=2, norm_layer=_group_norm
        )
        self.regression_head = FCOSRegressionHead(channels, 1, num_convs=2, norm_layer=_group_norm)


def _group_norm(channels: int) -> nn.GroupNorm:
    # Batch norm would mix the statistics of the levels, which share a head.
    return nn.GroupNorm(gcd(8, channels), channels)


def _fcos(backbone: SmallBackbone, num_classes: int) -> FCOS:
    return FCOS(
        backbone,
        num_classes,
        anchor_generator=AnchorGenerator(
            tuple((stride,) for stride in _STRIDES), ((1.0,),) * len(_STRIDES)
        ),
        head=_SmallFcosHead(backbone.out_channels, num_classes),
        score_thresh=_LEAST_SCORE,
    )


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(tuple((size,) for size in _SIZES), (_RATIOS,) * len(_SIZES))


def _retinanet(backbone: SmallBackbone, num_classes: int) -> RetinaNet:
    anchors = _anchors()
    return RetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(
            backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes, _group_norm
        ),
        score_thresh=_LEAST_SCORE,
    )


def _ssd(backbone: SmallBackbone, num_classes: int) -> SSD:
    shares = [size / _SIDE for size in (*_SIZES, _SIDE)]
    boxes = DefaultBoxGenerator([[2]] * len(_SIZES), scales=shares, steps=list(_STRIDES))
    head = SSDHead(
        [backbone.out_channels] * len(_SIZES), boxes.num_anchors_per_location(), num_classes
    )
    return SSD(backbone, boxes, (_SIDE, _SIDE), num_classes, head=head, score_thresh=_LEAST_SCORE)


def _faster_rcnn(backbone: SmallBackbone, num_classes: int) -> FasterRCNN:
    hidden = _HIDDEN * backbone.out_channels // _PYRAMID
    pool = MultiScaleRoIAlign([str(i) for i in range(len(_STRIDES))], 5, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=_anchors(),
        rpn_pre_nms_top_n_train=2 * _PROPOSALS_TRAINED,
        rpn_pre_nms_top_n_test=2 * _PROPOSALS_ASKED,
        rpn_post_nms_top_n_train=_PROPOSALS_TRAINED,
        rpn_post_nms_top_n_test=_PROPOSALS_ASKED,
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * 5 * 5, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        box_batch_size_per_image=32,
        box_score_thresh=_LEAST_SCORE,
    )
