"""Tell an architecture by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from bdaudit.models.architectures import (
    Blueprint,
    blueprint,
    known_detectors,
    known_torchvision,
    training_only_prefixes,
)

__all__ = ["Match", "closest_architectures", "drop_wrapper_prefix", "match_blueprint"]

FAMILIES = (
    (r"(resnet|resnext|wide_resnet)\d+\w*", "layer1.0.conv1.weight"),
    (r"alexnet|vgg\w+", "features.0.weight"),
    (r"squeezenet\w+", "features.3.squeeze.weight"),
    (r"densenet\d+", "features.denseblock1.denselayer1.conv1.weight"),
    (r"efficientnet_b\d", "features.1.0.block.1.fc1.weight"),
    (r"efficientnet_v2_\w", "features.1.0.block.0.0.weight"),
    (r"mobilenet_v2", "features.1.conv.0.0.weight"),
    (r"mobilenet_v3_\w+", "features.1.block.0.0.weight"),
    (r"convnext_\w+", "features.1.0.layer_scale"),
    (r"swin_\w+", "features.1.0.attn.qkv.weight"),
    (r"vit_\w_\d+", "encoder.pos_embedding"),
    (r"maxvit_t", "blocks.0.layers.0.layers.MBconv.layers.pre_norm.weight"),
    (r"regnet_\w+", "trunk_output.block1.block1-0.f.a.0.weight"),
    (r"mnasnet\w+", "layers.8.0.layers.0.weight"),
    (r"shufflenet_v2_\w+", "stage2.0.branch1.0.weight"),
    (r"googlenet", "inception3a.branch1.conv.weight"),
    (r"inception_v3", "Mixed_5b.branch1x1.conv.weight"),
)
"""Torchvision's names by family, with a tensor that every member has, so that only the family in
question is built to compare against."""

DETECTORS = (
    ("fcos", r"fcos_\w+", "head.regression_head.bbox_ctrness.weight"),
    ("retinanet", r"retinanet_\w+", "head.classification_head.cls_logits.weight"),
    ("ssd", r"ssd300_\w+", "head.classification_head.module_list.0.weight"),
    ("ssd", r"ssdlite\w+", "head.classification_head.module_list.0.1.weight"),
    # Torchvision's two on MobileNetV3 differ in nothing that is in a file, and must be named.
    ("fasterrcnn", r"fasterrcnn_resnet\w+", "roi_heads.box_predictor.cls_score.weight"),
)
"""Kinds of detectors by our name and torchvision's, with a tensor that all of the kind have; a kind
that shares its tensor with another stands behind it."""

DETECTOR_STEM = "backbone.stem.0.weight"
"""The first convolution of our small detectors, whose first side is the width."""

SMALL_MARKERS = {
    "vgg19_bn": "convolutions.0.weight",
    "mobilenet_v2": "stem.0.weight",
    "vit_p4": "patch_embed.weight",
}
"""Our own small networks, each with its first convolution, whose first side is the width."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well tensors fit an architecture.

    Attributes:
        arch: The architecture.
        score: Tensors that agree in name and shape, as a share of all names on either side; 1.0
            is a perfect fit whatever the number of classes and input channels.
        num_classes: First side of the head, `None` when the head is missing or disagrees.
        in_channels: Second side of the stem, `None` when it is missing.
        wrong_shapes: (name, expected, got) for each tensor of another shape.
        missing: Names the architecture has and the file has not.
        unexpected: Names the file has and the architecture has not.
    """

    arch: str
    score: float
    num_classes: int | None
    in_channels: int | None
    wrong_shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the tensors can be loaded as they are."""
        return not (self.wrong_shapes or self.missing or self.unexpected)


def match_blueprint(plan: Blueprint, tensors: Mapping[str, Tensor]) -> Match:
    """Compare tensors with an architecture, leaving class count and input channels open.

    Counters of batch norm (`num_batches_tracked`), which old files lack, may be missing.
    """
    auxiliary = training_only_prefixes(plan.arch)
    found = {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not (auxiliary and name.startswith(auxiliary))
    }
    num_classes = _common_side(found, plan.head)
    in_channels = found[plan.stem][1] if plan.stem in found and len(found[plan.stem]) == 4 else None
    agree, wrong = 0, []
    for name, shape in plan.shapes.items():
        if name not in found:
            continue
        expected = shape
        if name in plan.head and num_classes is not None:
            expected = (num_classes * plan.head[name], *shape[1:])
        if name == plan.stem and in_channels is not None:
            expected = (shape[0], in_channels, *shape[2:])
        if found[name] == expected:
            agree += 1
        else:
            wrong.append((name, expected, found[name]))
    missing = tuple(
        n for n in plan.shapes if n not in found and not n.endswith("num_batches_tracked")
    )
    unexpected = tuple(n for n in found if n not in plan.shapes)
    total = agree + len(wrong) + len(missing) + len(unexpected)
    return Match(
        arch=plan.arch,
        score=agree / max(total, 1),
        num_classes=num_classes,
        in_channels=in_channels,
        wrong_shapes=tuple(wrong),
        missing=missing,
        unexpected=unexpected,
    )


def closest_architectures(tensors: Mapping[str, Tensor], *, limit: int = 3) -> tuple[Match, ...]:
    """Rank the known architectures (torchvision's and ours) by how well `tensors` fit them.

    Networks of timm are not searched: there are over a thousand, and many share their names with
    torchvision's.

    Returns:
        At most `limit` matches, best first; empty when nothing resembles the tensors.
    """
    matches = []
    for arch in _candidates(tensors):
        match = match_blueprint(blueprint(arch), tensors)
        if match.fits:
            return (match,)
        matches.append(match)
    matches.sort(key=lambda match: -match.score)
    return tuple(match for match in matches[:limit] if match.score > 0)


def drop_wrapper_prefix(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """Drop the first part of all names when they share it, or return `None`.

    Training code often keeps the network in an attribute ("model.conv1.weight"), or puts its
    preprocessing before it in a Sequential ("1.conv1.weight").
    """
    heads = {name.partition(".")[0] for name in tensors}
    if len(heads) != 1 or not all(name.partition(".")[2] for name in tensors):
        return None
    prefix = f"{heads.pop()}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, prefix


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    stem = tensors.get("conv1.weight")
    if stem is not None and stem.ndim == 4 and "layer1.0.bn1.weight" in tensors:
        width = int(stem.shape[0])
        if "linear.weight" in tensors and 1 <= width <= 1024:
            yield "bdaudit/preactresnet18" + ("" if width == 64 else f"_w{width}")
    for name, marker in SMALL_MARKERS.items():
        stem = tensors.get(marker)
        width = int(stem.shape[0]) if stem is not None and stem.ndim == 4 else 0
        if 1 <= width <= 1024 and (name != "vit_p4" or width % 16 == 0):
            yield f"bdaudit/{name}_w{width}"
    row = tensors.get("row.weight")
    if row is not None and row.ndim == 4 and row.shape[2] == 1 and 1 <= row.shape[0] <= 1024:
        yield f"bdaudit/mlp_f{row.shape[3]}_w{row.shape[0]}"
    for pattern, marker in FAMILIES:
        if marker in tensors:
            for name in known_torchvision():
                if re.fullmatch(pattern, name):
                    yield f"torchvision/{name}"
    yield from _candidate_detectors(tensors)


def _candidate_detectors(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    stem = tensors.get(DETECTOR_STEM)
    for kind, pattern, marker in DETECTORS:
        if marker not in tensors:
            continue
        if stem is not None and stem.ndim == 4 and 1 <= stem.shape[0] <= 1024:
            yield f"bdaudit/{kind}_w{stem.shape[0]}"
        elif stem is None:
            for name in known_detectors():
                if re.fullmatch(pattern, name):
                    yield f"torchvision/{name}"
        return


def _common_side(found: Mapping[str, tuple[int, ...]], head: Mapping[str, int]) -> int | None:
    sides = {found[name][0] / each for name, each in head.items() if found.get(name)}
    side = sides.pop() if len(sides) == 1 else 0.5
    return int(side) if side.is_integer() else None
