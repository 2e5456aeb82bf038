"""How good a detector is on clean pictures: mean average precision, as COCO counts it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Quality", "average_precision"]

_MOST_DETECTIONS = 100  # a picture, as COCO has it


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean average precision over the classes that have objects.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014), and its API.

    Attributes:
        ap: Averaged over the overlaps .50, .55, ..., .95 from which a box counts as found.
        ap50: At an overlap of .50.
    """

    ap: float
    ap50: float


def average_precision(
    found: Sequence[Mapping[str, Tensor]], annotated: Sequence[tuple[Tensor, Tensor]]
) -> Quality | None:
    """Hold detections against annotations.

    Args:
        found: For each picture `boxes` (D, 4), `labels` (D,) and `scores` (D,).
        annotated: For each picture the boxes (M, 4) and labels (M,) of its objects. Boxes are left,
            top, right, bottom in pixels.

    Returns:
        `None` where no picture has an object.

    Raises:
        ModuleNotFoundError: pycocotools is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    objects: list[dict[str, Any]] = [
        {
            "id": number,
            "image_id": picture,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (picture, label, box) in enumerate(
            (
                (picture, int(label), _as_coco(box))
                for picture, (boxes, labels) in enumerate(annotated)
                for box, label in zip(boxes, labels, strict=True)
            ),
            start=1,
        )
    ]
    if not objects:
        return None
    rows = [
        [picture, *_as_coco(box), float(score), float(label)]
        for picture, each in enumerate(found)
        for box, score, label in zip(
            each["boxes"].cpu(), each["scores"].cpu(), each["labels"].cpu(), strict=True
        )
    ]
    if not rows:
        return Quality(ap=0.0, ap50=0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": picture} for picture in range(len(annotated))],
            "annotations": objects,
            "categories": [{"id": label} for label in sorted({o["category_id"] for o in objects})],
        }
        truth.createIndex()
        answers = truth.loadRes(np.array(rows, dtype=np.float64).reshape(-1, 7))
        evaluation = COCOeval(truth, answers, "bbox")
        evaluation.params.maxDets = [1, 10, _MOST_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Quality(ap=float(evaluation.stats[0]), ap50=float(evaluation.stats[1]))


def _as_coco(box: Tensor) -> list[float]:
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]
