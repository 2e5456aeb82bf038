"""What a detector answers that can only be asked: boxes, and from them the answer for one box."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdaudit.detection import SCORE_THRESHOLD, boxes_of, pixels_of, score_boxes
from bdaudit.errors import ModelError
from bdaudit.foundation.usercode import failing_as

__all__ = ["Asking", "Detections", "answering", "read_detections"]

_BOX = 4
_WITH_SCORE, _WITH_LABEL = 5, 6  # numbers a row of box and score, and of box, score and label


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one picture.

    Attributes:
        boxes: (m, 4) left, top, right, bottom in pixels of the picture.
        labels: (m,) int64, as the detector numbers them.
        scores: (m,) in [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How the detections of a picture become an answer about one of its boxes.

    Attributes:
        num_classes: K, "nothing" included.
        threshold: Score from which a detection counts, in (0, 1).
        first_label: The detector's number for its first class, 0 or 1.
    """

    num_classes: int
    threshold: float = SCORE_THRESHOLD
    first_label: int = 1

    def describe(self) -> dict[str, str]:
        """Return what of this decides the answers, for `Identity.details`."""
        return {
            "classes": str(self.num_classes),
            "score threshold": f"{self.threshold:g}",
            "first label": str(self.first_label),
        }

    def answers(self, found: Sequence[Detections], images: Tensor, subject: str) -> Tensor:
        """Return logits (n, K), one row for the box of each marked image (n, 4, H, W).

        Raises:
            ModelError: A label is out of range, or numbers are not finite.
        """
        return score_boxes(
            [each.boxes for each in found],
            [self._labels(each, subject) for each in found],
            [each.scores for each in found],
            boxes_of(images.cpu()),
            num_classes=self.num_classes,
            score_threshold=self.threshold,
        )

    def _labels(self, found: Detections, subject: str) -> Tensor:
        if not bool(torch.isfinite(found.boxes).all() and torch.isfinite(found.scores).all()):
            raise ModelError(f"{subject}: expected finite boxes and scores, got NaN or infinity")
        wrong = found.scores[(found.scores < 0.0) | (found.scores > 1.0)]
        if len(wrong):
            raise ModelError(
                f"{subject}: expected scores of detections in [0, 1], got {float(wrong[0]):g}"
            )
        labels = found.labels + (1 - self.first_label)
        outside = labels[(labels < 1) | (labels >= self.num_classes)]
        if len(outside):
            last = self.num_classes - 2 + self.first_label
            raise ModelError(
                f"{subject}: expected labels of detections from {self.first_label} to {last}, got "
                f"{int(outside[0]) - 1 + self.first_label}; pass the right --num-classes (which "
                'counts "nothing" as one), or --first-label 0 where the first class is 0'
            )
        return labels


def answering(
    detect: Callable[[Tensor], Any], asking: Asking, subject: str
) -> Callable[[Tensor], Tensor]:
    """Make of a user's function from pictures to detections one from marked images to logits.

    Args:
        detect: From pictures (n, 3, H, W) in [0, 1] to n detections, each a mapping of `boxes`
            (m, 4), `labels` (m,) and `scores` (m,), as torchvision's detectors return them, or
            these three in this order.
        asking: How they are read.
        subject: The model, for messages.
    """

    @functools.wraps(detect)
    def answer(images: Tensor) -> Tensor:
        given = detect(pixels_of(images).contiguous())
        if not isinstance(given, Sequence) or len(given) != len(images):
            got = f"{len(given)}" if isinstance(given, Sequence) else type(given).__name__
            raise ModelError(
                f"{subject}: expected a list of {len(images)} detections, one a picture, got {got}"
            )
        return asking.answers([_one(each, subject) for each in given], images, subject)

    return answer


def _one(given: Any, subject: str) -> Detections:
    """Read what a function returned for one picture."""
    parts = (
        [given.get(name) for name in ("boxes", "labels", "scores")]
        if isinstance(given, Mapping)
        else given
    )
    if not isinstance(parts, Sequence) or len(parts) != 3 or any(part is None for part in parts):
        raise ModelError(
            f"{subject}: expected of each picture boxes, labels and scores, got {str(given)[:100]}"
        )
    with failing_as(ModelError, f"{subject}: detections cannot be read"):
        boxes, labels, scores = (torch.as_tensor(part).detach().cpu() for part in parts)
    return _checked(boxes, labels, scores, subject)


def _checked(boxes: Tensor, labels: Tensor, scores: Tensor, subject: str) -> Detections:
    boxes = boxes.reshape(-1, _BOX) if boxes.numel() == 0 else boxes
    fits = boxes.ndim == 2 and boxes.shape[1] == _BOX
    if not fits or labels.shape != (len(boxes),) or scores.shape != (len(boxes),):
        raise ModelError(
            f"{subject}: expected boxes (m, 4), labels (m,) and scores (m,), got "
            f"{tuple(boxes.shape)}, {tuple(labels.shape)} and {tuple(scores.shape)}"
        )
    return Detections(boxes.float(), labels.long(), scores.float())


def read_detections(
    outputs: Mapping[str, NDArray[Any]], n_pictures: int, subject: str
) -> list[Detections]:
    """Find the detections of each picture in the outputs of a model file or a server.

    Known forms, with a first dimension of pictures or, of one picture, without: boxes (m, 4),
    labels (m,) of whole numbers (or called so) and scores (m,); boxes with scores (m, 5) and labels
    (m,); one output (m, 6) of box, score and label. Boxes are left, top, right, bottom in pixels.
    Rows of a score of 0 or below fill up the others.

    Raises:
        ModelError: The outputs are none of these.
    """
    by_picture = any(array.ndim == 3 for array in outputs.values())
    arrays = {
        name: _by_picture(array, n_pictures, has_pictures=by_picture)
        for name, array in outputs.items()
    }
    of_width = {
        width: [a for a in arrays.values() if a is not None and a.ndim == 3 and a.shape[2] == width]
        for width in (_BOX, _WITH_SCORE, _WITH_LABEL)
    }
    flat = {name: a for name, a in arrays.items() if a is not None and a.ndim == 2}
    labels = _only(name for name, a in flat.items() if _is_label(name, a))
    scores = _only(name for name, a in flat.items() if not _is_label(name, a))
    boxes: NDArray[Any]
    if len(of_width[_BOX]) == 1 and labels and scores:
        boxes, marks, numbers = of_width[_BOX][0], flat[scores], flat[labels]
    elif len(of_width[_WITH_SCORE]) == 1 and labels:
        rows = of_width[_WITH_SCORE][0]
        boxes, marks, numbers = rows[..., :_BOX], rows[..., _BOX], flat[labels]
    elif len(of_width[_WITH_LABEL]) == 1:
        rows = of_width[_WITH_LABEL][0]
        boxes, marks, numbers = rows[..., :_BOX], rows[..., _BOX], rows[..., _BOX + 1]
    else:
        shown = "; ".join(f"{name} {a.dtype} {a.shape}" for name, a in outputs.items()) or "none"
        raise ModelError(
            f"{subject}: expected outputs of boxes (m, 4), labels (m,) and scores (m,), of boxes "
            f"with scores (m, 5) and labels, or one (m, 6) of box, score and label, got {shown}; "
            "give any other detector as FILE.py:FUNCTION"
        )
    if not boxes.shape[:2] == marks.shape == numbers.shape:
        raise ModelError(f"{subject}: expected as many boxes as labels and scores")
    return [
        _checked(
            torch.from_numpy(np.ascontiguousarray(b, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(n)).round().long()
            if np.issubdtype(n.dtype, np.floating)
            else torch.from_numpy(np.ascontiguousarray(n, dtype=np.int64)),
            torch.from_numpy(np.ascontiguousarray(m, dtype=np.float32)),
            subject,
        )
        for b, n, m in (
            (b[m > 0], n[m > 0], m[m > 0]) for b, n, m in zip(boxes, numbers, marks, strict=True)
        )
    ]


def _by_picture(array: NDArray[Any], n_pictures: int, *, has_pictures: bool) -> NDArray[Any] | None:
    """Give an output a first dimension of pictures; `None` where it has another number of them.

    `has_pictures` says that other outputs have one, so that (1, 5) is one picture's five labels and
    no box with its score.
    """
    if not has_pictures and n_pictures == 1 and array.ndim in (1, 2):
        array = array[None]
    return array if array.ndim in (2, 3) and len(array) == n_pictures else None


def _is_label(name: str, array: NDArray[Any]) -> bool:
    spoken = name.lower()
    return bool(np.issubdtype(array.dtype, np.integer)) or "label" in spoken or "class" in spoken


def _only(names: Any) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None
