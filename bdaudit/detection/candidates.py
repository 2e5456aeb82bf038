"""All boxes that a torchvision detector considers, with the score of every class, as tensors.

A detector's answer is a list that non-maximum suppression leaves of many candidates. The list has
no gradient where an object is missing from it, and the candidates have: they are computed here by
the detector's own parts (its transform, backbone, heads, anchors and box coders), so that a score
is the one that its own forward would report.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError

__all__ = ["Candidates", "candidates", "kind_of", "least_score", "num_classes_of"]

_PACKAGE = "torchvision.models.detection."
_KINDS = ("FCOS", "RetinaNet", "SSD", "FasterRCNN")
_PADDING = -1e4  # log score of what only fills up a shorter list: never the best


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a detector considers in each of N pictures before non-maximum suppression.

    Attributes:
        boxes: (N, A, 4), or (N, A, K, 4) where every class has a box of its own; left, top, right
            and bottom in pixels of the pictures, inside them.
        log_scores: (N, A, K), float32, the logarithm of each class's score; class 0 means nothing,
            and is a score of the background or one that no class uses.
    """

    boxes: Tensor
    log_scores: Tensor


def kind_of(module: nn.Module) -> str | None:
    """Return which detector of torchvision a module is or descends from, `None` for any other.

    Told by names, so that torchvision is not imported for networks that are none.
    """
    for base in type(module).__mro__:
        if base.__module__.startswith(_PACKAGE) and base.__name__ in _KINDS:
            return base.__name__
    return None


def candidates(detector: nn.Module, pictures: Tensor) -> Candidates:
    """Compute all candidate boxes and scores, in the mode that the detector is in.

    Log scores are exact also where a score is next to 1, and differentiable in the pictures. Of
    Faster R-CNN the candidates are the proposals of its first stage, through which, as in its
    training, no gradient passes.

    Args:
        detector: FCOS, RetinaNet, SSD or Faster R-CNN of torchvision, in either mode; batch norm
            and dropout follow it, the number of proposals does not.
        pictures: (N, 3, H, W) in [0, 1], on the detector's device.

    Raises:
        ModelError: It is no such detector.
    """
    kind = kind_of(detector)
    if kind is None:
        raise ModelError(
            "expected an object detector of torchvision (FCOS, RetinaNet, SSD or Faster R-CNN), "
            f"got {type(detector).__name__}"
        )
    parts: Any = detector
    images = _prepared(detector, pictures)
    features = parts.backbone(images.tensors)
    if isinstance(features, Tensor):
        features = {"0": features}
    considered = _of_two_stages if kind == "FasterRCNN" else _of_one_stage
    boxes, log_scores = considered(detector, kind, images, features)
    seen_height, seen_width = images.image_sizes[0]
    height, width = pictures.shape[-2:]
    seen = torch.tensor([seen_width, seen_height] * 2, dtype=boxes.dtype, device=boxes.device)
    own = torch.tensor([width, height] * 2, dtype=boxes.dtype, device=boxes.device)
    boxes = torch.minimum(boxes.clamp_min(0), seen)
    return Candidates(boxes * (own / seen), log_scores)


def num_classes_of(detector: nn.Module) -> int:
    """Return how many classes a detector tells apart, the background among them."""
    parts: Any = detector
    if kind_of(detector) == "FasterRCNN":
        return int(parts.roi_heads.box_predictor.cls_score.out_features)
    head = parts.head.classification_head
    # SSD's head keeps it as the number of columns.
    return int(getattr(head, "num_classes", None) or head.num_columns)


def least_score(detector: nn.Module) -> float:
    """Return the score below which a detector reports nothing, by its own setting."""
    owner: Any = detector.roi_heads if kind_of(detector) == "FasterRCNN" else detector
    return float(owner.score_thresh)


def _prepared(detector: Any, pictures: Tensor) -> Any:
    """Normalise, resize and pad pictures of one size as the detector's transform does.

    That puts each picture into the batch by itself, whose gradient takes time that grows with the
    square of the batch; of pictures of one size the result is the same.
    """
    from torchvision.models.detection.image_list import ImageList

    transform = detector.transform
    with _as_in_eval(transform):  # in training it may draw a size
        seen = torch.stack([transform.resize(p)[0] for p in transform.normalize(pictures)])
    height, width = seen.shape[-2:]
    unit = transform.size_divisible
    padded = functional.pad(seen, (0, -width % unit, 0, -height % unit))
    return ImageList(padded, [(height, width)] * len(pictures))


def _of_one_stage(
    detector: Any, kind: str, images: Any, features: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    levels = list(features.values())
    answers = {name: part.float() for name, part in detector.head(levels).items()}
    anchors = torch.stack(detector.anchor_generator(images, levels))  # (N, A, 4)
    codes, logits = answers["bbox_regression"], answers["cls_logits"]
    if kind == "FCOS":
        log_scores = functional.logsigmoid(logits) + functional.logsigmoid(answers["bbox_ctrness"])
        return detector.box_coder.decode(codes, anchors), log_scores / 2
    boxes = detector.box_coder.decode_single(codes.flatten(0, 1), anchors.flatten(0, 1))
    log_scores = _log_softmax(logits) if kind == "SSD" else functional.logsigmoid(logits)
    return boxes.view_as(codes), log_scores


def _of_two_stages(
    detector: Any, kind: str, images: Any, features: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    heads = detector.roi_heads
    with _as_in_eval(detector.rpn):  # in training it asks for the true boxes
        proposals, _ = detector.rpn(images, features)
    pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, codes = heads.box_predictor(heads.box_head(pooled))
    log_scores = _log_softmax(logits.float())
    boxes = heads.box_coder.decode(codes.float(), proposals).view(*logits.shape, 4)
    counts = [len(proposal) for proposal in proposals]
    return _as_rows(boxes, counts, 0.0), _as_rows(log_scores, counts, _PADDING)


def _as_rows(values: Tensor, counts: list[int], fill: float) -> Tensor:
    """Give the values (P, ...) of pictures one after another as (N, longest, ...), filled up."""
    unchanged = (0, 0) * (values.ndim - 1)
    return torch.stack(
        [
            functional.pad(part, (*unchanged, 0, max(counts) - len(part)), value=fill)
            for part in torch.split(values, counts)
        ]
    )


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis, exact also where it is next to 0.

    There the usual form is 0 as soon as all others together are lost in rounding, and its gradient
    with it. Of the largest class it is -log(1 + exp(others - own)).
    """
    log_scores = functional.log_softmax(logits, dim=-1)
    largest, which = logits.max(dim=-1, keepdim=True)
    others = logits.scatter(-1, which, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return log_scores.scatter(-1, which, functional.logsigmoid(largest - others))


@contextmanager
def _as_in_eval(module: nn.Module) -> Iterator[None]:
    """Let one module, and not what is inside it, behave as in eval mode."""
    mode = module.training
    module.training = False
    try:
        yield
    finally:
        module.training = mode
