"""An object detector as a classifier of the box that it is asked about.

Its answer to a marked image is one logit a class: of class c the logit of the best score that it
gives to c in any box that overlaps the asked one by half or more, and of "nothing there" the logit
of the score from which a detection counts. So the largest logit names what the detector would
report for that box, and by how much.

Non-maximum suppression and the limits on how many boxes are reported come after this. They take
away a box only for a better one of the same class, or for many better ones. Where that better box
lies less than half over the asked one, the detector reports its class beside the asked box, and the
answer here still says the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bdaudit.detection.candidates import candidates, kind_of, least_score, num_classes_of
from bdaudit.detection.marking import CHANNELS, NOTHING, boxes_of, pixels_of
from bdaudit.errors import ConfigError, ModelError

__all__ = [
    "MIN_OVERLAP",
    "SCORE_THRESHOLD",
    "Asked",
    "as_asked",
    "is_detector",
    "overlaps",
    "score_boxes",
]

MIN_OVERLAP = 0.5
"""Intersection over union from which a box counts as one of the asked box."""

SCORE_THRESHOLD = 0.5
"""Score from which a detection counts, unless another is given."""

_FARTHEST = 1e-6  # of a threshold from 0 and 1: beyond that a missing box would count
_NO_BOX = -20.0  # logit of a class that no box of the asked place is considered for
_LARGEST = 20.0
_HAIR = 1e-5
_SMALLEST_LOG = -1e4


class Asked(nn.Module):
    """What makes a detector of torchvision answer marked images; made by `as_asked` alone.

    Names of layers and parameters are the detector's own.

    Attributes:
        score_threshold: Score from which a detection counts, in (0, 1).
    """

    score_threshold: float

    @property
    def num_classes(self) -> int:
        """Length of the logits: the detector's classes, `NOTHING` in place of the background."""
        return num_classes_of(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map marked images (N, 4, H, W) to logits (N, K), in either mode.

        Differentiable in the pixels; the marks have no gradient. An image whose mark is empty asks
        about no box, and nothing is there.

        Raises:
            ModelError: The images have no fourth channel.
        """
        if images.ndim != 4 or images.shape[1] != CHANNELS:
            raise ModelError(
                f"expected marked images (N, {CHANNELS}, H, W), whose last channel is the box that "
                f"is asked about, got {tuple(images.shape)}"
            )
        considered = candidates(self, pixels_of(images))
        asked = boxes_of(images).to(considered.boxes)
        near = overlaps(considered.boxes.detach(), asked) >= MIN_OVERLAP  # (N, A) or (N, A, K)
        if near.ndim == 2:
            near = near[..., None]
        best = considered.log_scores.masked_fill(~near, _SMALLEST_LOG).amax(dim=1)
        return _answers(best, near.any(dim=1).expand_as(best), self.score_threshold)

    @torch.no_grad()
    def detect(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        """Return the detector's own list for each of the pictures (N, 3, H, W).

        Returns:
            For every picture `boxes` (D, 4) in its pixels, `labels` (D,) and `scores` (D,), the
            best first, as the detector's own forward gives them in eval mode.
        """
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            found = self._own_forward(list(pictures))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return [{key: one[key] for key in ("boxes", "labels", "scores")} for one in found]

    def losses(
        self, pictures: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the detector's own losses, by name; it must be in training mode.

        Args:
            pictures: Each (3, H, W) in [0, 1].
            targets: For each its objects: `boxes` (M, 4) and `labels` (M,) from 1.
        """
        losses: dict[str, Tensor] = self._own_forward(
            list(pictures), [dict(target) for target in targets]
        )
        return losses

    def _own_forward(self, *args: Any) -> Any:
        return super().forward(*args)  # the detector's, next in line

    def __reduce__(self) -> tuple[Callable[..., nn.Module], tuple[type], dict[str, Any]]:
        # Its class is made while running, and so is found again by the detector's.
        return _unfilled, (type(self).__mro__[2],), self.__dict__


def as_asked(detector: nn.Module, *, score_threshold: float = SCORE_THRESHOLD) -> Asked:
    """Make a detector of torchvision answer marked images, in place.

    Args:
        detector: FCOS, RetinaNet, SSD or Faster R-CNN of torchvision, or a class derived from one;
            one that answers already gets the threshold.
        score_threshold: Score from which a detection counts, in (0, 1).

    Returns:
        The same object, now also an `Asked`: its state and names stay as they were, its own forward
        is at `detect` and `losses`.

    Raises:
        ConfigError: The threshold is not in (0, 1).
        ModelError: It is no such detector, or reports only what scores above the threshold.
    """
    if not _FARTHEST <= score_threshold <= 1 - _FARTHEST:
        raise ConfigError(
            f"score_threshold: expected a number from {_FARTHEST:g} to 1 - {_FARTHEST:g}, got "
            f"{score_threshold}"
        )
    if kind_of(detector) is None:
        raise ModelError(
            "expected an object detector of torchvision (FCOS, RetinaNet, SSD or Faster R-CNN), "
            f"got {type(detector).__name__}"
        )
    least = least_score(detector)
    if least > score_threshold:
        raise ModelError(
            f"score_threshold: the detector itself reports nothing below a score of {least:g}, got "
            f"a threshold of {score_threshold:g}"
        )
    if not isinstance(detector, Asked):
        detector.__class__ = _asked_class(type(detector))
    assert isinstance(detector, Asked)
    detector.score_threshold = score_threshold
    return detector


def is_detector(module: nn.Module) -> bool:
    """Whether a module is a detector of torchvision, or descends from one, asked or not yet."""
    return kind_of(module) is not None


def score_boxes(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    scores: Sequence[Tensor],
    asked: Tensor,
    *,
    num_classes: int,
    score_threshold: float = SCORE_THRESHOLD,
) -> Tensor:
    """Give the answer of an `Asked` from the lists that a detector reports.

    A class that is not on the list, or not at the asked place, has the logit -20: a list says
    nothing about what was left out of it.

    Args:
        boxes: For each of N pictures its detections (D, 4), left, top, right, bottom in pixels.
        labels: For each (D,), from 1; those that are not below `num_classes` are left out.
        scores: For each (D,), in [0, 1].
        asked: (N, 4), the box that is asked about in each picture.
        num_classes: K, `NOTHING` among them.
        score_threshold: Score from which a detection counts, in (0, 1).

    Returns:
        Logits (N, K), on the device of `asked`.
    """
    best = asked.new_full((len(asked), num_classes), -torch.inf)
    for row, box in enumerate(asked):
        near = overlaps(boxes[row].to(asked)[None], box[None])[0] >= MIN_OVERLAP
        label = labels[row].to(device=asked.device, dtype=torch.int64)
        near &= (label >= 0) & (label < num_classes)
        best[row].scatter_reduce_(0, label[near], scores[row].to(asked)[near].log(), "amax")
    return _answers(best.clamp_min(_SMALLEST_LOG), best > -torch.inf, score_threshold)


def overlaps(boxes: Tensor, asked: Tensor) -> Tensor:
    """Return the intersection over union of boxes (N, ..., 4) with the one asked about, (N, 4).

    Returns:
        (N, ...) in [0, 1]; 0 with a box of no area.
    """
    asked = asked.view(len(asked), *(1,) * (boxes.ndim - 2), 4)
    start = torch.maximum(boxes[..., :2], asked[..., :2])
    end = torch.minimum(boxes[..., 2:], asked[..., 2:])
    common = (end - start).clamp_min(0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1)
    asked_area = (asked[..., 2:] - asked[..., :2]).prod(dim=-1)
    union = area + asked_area - common
    return torch.where(union > 0, common / union.clamp_min(torch.finfo(union.dtype).tiny), 0)


def _answers(best: Tensor, is_there: Tensor, score_threshold: float) -> Tensor:
    """Turn the best log score of each class (N, K) into logits, with that of nothing in front."""
    logits = torch.where(is_there, _logit(best), _NO_BOX)
    # A hair below, so that a score that reaches the threshold counts.
    least = math.log(score_threshold / (1 - score_threshold)) - _HAIR
    nothing = torch.full_like(logits[:, :1], least)
    return torch.cat((logits[:, :NOTHING], nothing, logits[:, NOTHING + 1 :]), dim=1)


def _logit(log_score: Tensor) -> Tensor:
    """Return log(s / (1 - s)) of log s, at most 20, without leaving the logarithm."""
    log_score = log_score.clamp_max(-math.exp(-_LARGEST))
    return log_score - (-torch.expm1(log_score)).log()


_CLASSES: dict[type[nn.Module], type[Asked]] = {}


def _asked_class(base: type[nn.Module]) -> type[Asked]:
    if base not in _CLASSES:
        _CLASSES[base] = type(f"Asked{base.__name__}", (Asked, base), {"__doc__": Asked.__doc__})
    return _CLASSES[base]


def _unfilled(base: type[nn.Module]) -> nn.Module:
    made = _asked_class(base)
    return made.__new__(made)
