"""Mean average precision on lists of boxes whose precision is known by hand."""

from __future__ import annotations

import pytest
import torch

from bdaudit.detection import average_precision

BOXES = torch.tensor([[1.0, 2.0, 20.0, 22.0], [30.0, 30.0, 60.0, 60.0]])
LABELS = torch.tensor([1, 2])


def found(boxes: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = torch.linspace(0.9, 0.6, len(boxes))
    return {"boxes": boxes, "labels": labels, "scores": scores}


@pytest.mark.parametrize(
    ("answer", "ap50", "ap"),
    [
        (found(BOXES, LABELS), 1.0, 1.0),
        (found(BOXES[:1], LABELS[:1]), 0.5, 0.5),
        (found(BOXES, LABELS.flip(0)), 0.0, 0.0),
        (found(BOXES[:0], LABELS[:0]), 0.0, 0.0),
        # Of 19 x 20 pixels, 5 columns to the right: an overlap of 14 / 24, above .50 and .55.
        (found(BOXES[:1] + torch.tensor([5.0, 0, 5, 0]), LABELS[:1]), 0.5, 0.1),
    ],
)
def test_it_is_as_by_hand(answer: dict[str, torch.Tensor], ap50: float, ap: float) -> None:
    quality = average_precision([answer, answer], [(BOXES, LABELS)] * 2)
    assert quality is not None
    assert (quality.ap50, quality.ap) == (pytest.approx(ap50), pytest.approx(ap))


def test_of_pictures_without_objects_there_is_none() -> None:
    assert average_precision([found(BOXES, LABELS)], [(BOXES[:0], LABELS[:0])]) is None
