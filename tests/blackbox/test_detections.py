"""Detectors that can only be asked: what they found becomes the answer for one box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bdaudit.blackbox import BlackBoxOptions, open_black_box
from bdaudit.blackbox.detections import read_detections
from bdaudit.detection import mark
from bdaudit.errors import ConfigError, ModelError
from bdaudit.models import ModelSettings
from tests.blackbox.onnx_graphs import FINDER_BOXES, finder, finder_onnx

SHAPE = (4, 8, 8)
LEFT, RIGHT = (torch.tensor(box) for box in FINDER_BOXES)


def pictures(*colours: tuple[float, float]) -> Tensor:
    """Pictures as red and as green as said."""
    made = torch.zeros(len(colours), 3, 8, 8)
    for picture, (red, green) in zip(made, colours, strict=True):
        picture[0], picture[1] = red, green
    return made


ASKED = mark(
    pictures((0.9, 0.1), (0.9, 0.1), (0.2, 0.8), (0.2, 0.8)),
    torch.stack((LEFT, RIGHT, LEFT, RIGHT)),
)


def opened(source: Any, **options: Any) -> Any:
    settings = ModelSettings(num_classes=3, image_shape=SHAPE)
    return open_black_box(
        source,
        name="defended",
        options=BlackBoxOptions(settings=settings, **options),
        detects=True,
    )


def expected() -> Tensor:
    logit = torch.tensor([0.9, 0.1, 0.2, 0.8]).logit()
    nowhere = torch.full((4,), -20.0)
    zero = torch.zeros(4)
    left = torch.tensor([True, False, True, False])
    return torch.stack(
        (zero, torch.where(left, logit, nowhere), torch.where(left, nowhere, logit)), dim=1
    )


@pytest.mark.parametrize("of", ["function", "alone", "batch", "rows"])
def test_the_best_score_at_the_box_answers(of: str, tmp_path: Path) -> None:
    source: Any = finder
    if of != "function":
        form = "rows" if of == "rows" else "three"
        source = finder_onnx(tmp_path / "finder.onnx", alone=of == "alone", form=form)
    box = opened(source)
    answers = box.ask(ASKED)
    torch.testing.assert_close(answers, expected(), rtol=1e-4, atol=1e-4)
    assert answers.argmax(1).tolist() == [1, 0, 0, 2]
    assert (box.n_queries, box.image_shape, box.num_classes) == (4, SHAPE, 3)


def test_a_function_is_shown_pictures_without_the_mark() -> None:
    shapes = []

    def look(shown: Tensor) -> list[tuple[list[Any], ...]]:
        shapes.append(tuple(shown.shape))
        return [([], [], []) for _ in shown]

    assert opened(look).ask(ASKED).argmax(1).tolist() == [0, 0, 0, 0]
    assert shapes == [(4, 3, 8, 8)]


def test_labels_may_begin_with_0() -> None:
    def from_0(shown: Tensor) -> list[dict[str, Tensor]]:
        return [{**each, "labels": each["labels"] - 1} for each in finder(shown)]

    box = opened(from_0, first_label=0)
    torch.testing.assert_close(box.ask(ASKED), expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"boxes": [[0, 0, 4, 8]], "labels": [3], "scores": [0.9]}, "labels of detections from 1"),
        ({"boxes": [[0, 0, 4, 8]], "labels": [1], "scores": [1.9]}, r"scores .* in \[0, 1\]"),
        ({"boxes": [[0, 0, 4, float("nan")]], "labels": [1], "scores": [0.9]}, "finite"),
        ({"boxes": [[0, 0, 4, 8]], "labels": [1, 2], "scores": [0.9]}, r"boxes \(m, 4\)"),
        ({"boxes": [[0, 0, 4, 8]], "labels": [1]}, "boxes, labels and scores"),
    ],
)
def test_what_is_no_detection_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        opened(lambda shown: [given for _ in shown]).ask(ASKED)


def test_as_many_answers_as_pictures() -> None:
    with pytest.raises(ModelError, match="a list of 4 detections"):
        opened(lambda shown: finder(shown)[:1]).ask(ASKED)


def test_a_file_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"FILE\.py:FUNCTION"):
        opened(finder_onnx(tmp_path / "finder.onnx", form="scores"))


def test_it_must_be_told_how_many_classes() -> None:
    with pytest.raises(ConfigError, match="--num-classes"):
        open_black_box(finder, name="defended", detects=True)


def test_boxes_with_scores_and_padding() -> None:
    rows = np.array([[[0, 0, 4, 8, 0.9], [4, 0, 8, 8, 0.0]]] * 2, dtype=np.float32)
    labels = np.array([[1, 0], [2, 0]], dtype=np.int64)
    found = read_detections({"dets": rows, "labels": labels}, 2, "model")
    assert [each.labels.tolist() for each in found] == [[1], [2]]
    assert found[0].boxes.tolist() == [[0, 0, 4, 8]]


def test_a_picture_with_as_many_detections_as_a_box_has_sides() -> None:
    for m in (3, 4, 5, 6):
        outputs = {
            "boxes": np.tile(np.array([0, 0, 4, 8], np.float32), (1, m, 1)),
            "labels": np.ones((1, m), np.int64),
            "scores": np.full((1, m), 0.5, np.float32),
        }
        for given in (outputs, {name: array[0] for name, array in outputs.items()}):
            (found,) = read_detections(given, 1, "model")
            assert (len(found.boxes), len(found.labels)) == (m, m)


def test_what_decides_the_answers_is_part_of_who_answers() -> None:
    def known(threshold: float, first: int) -> dict[str, str]:
        settings = ModelSettings(num_classes=3, image_shape=SHAPE, score_threshold=threshold)
        options = BlackBoxOptions(settings=settings, first_label=first)
        box = open_black_box(finder, name="defended", options=options, detects=True)
        return dict(box.identity().details)

    assert len({str(known(*pair)) for pair in ((0.5, 1), (0.3, 1), (0.5, 0))}) == 3
