"""Doubts about answers, each shown by a black box that deserves it and one that does not."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bdaudit.blackbox import check_repeatability, describe_scale, diagnose_grid
from tests.blackbox.test_base import IMAGES, NET, function_box, torch_box


def test_a_steady_model_raises_no_doubt() -> None:
    for feedback in ("scores", "labels"):
        box = torch_box(feedback=feedback)
        assert check_repeatability(box, IMAGES) == []
        assert box.n_queries == 2 * len(IMAGES)


def test_answers_that_change() -> None:
    draw = torch.Generator().manual_seed(0)
    slightly = function_box(lambda images: NET(images) + 0.1 * torch.rand(1, generator=draw))
    (doubt,) = check_repeatability(slightly, IMAGES)
    assert (doubt.code, doubt.severity) == ("answers_change", "warning")
    turn = itertools.count()
    in_turn = function_box(lambda images: NET(images).roll(next(turn), dims=1))
    (doubt,) = check_repeatability(in_turn, IMAGES)
    assert doubt.severity == "error"
    assert "9 top labels changed" in doubt.message


def test_answers_that_depend_on_the_batch() -> None:
    def by_place(images: Tensor) -> Tensor:
        return NET(images) + torch.arange(len(images))[:, None] * torch.eye(4)[0]

    assert check_repeatability(function_box(by_place), IMAGES)[0].code == "answers_change"


def test_scales_are_told() -> None:
    logits = torch_box()
    exact = function_box(lambda images: NET(images).div(9).softmax(1))
    rounded = function_box(lambda images: (NET(images).div(9).softmax(1) * 100).round() / 100)
    for box in (logits, exact, rounded):
        assert box.scale is None or box is logits
        box.ask(IMAGES)
    assert describe_scale(logits) == []
    assert [d.code for d in describe_scale(exact)] == ["scores_are_probabilities"]
    assert [d.code for d in describe_scale(rounded)] == [
        "scores_are_probabilities",
        "scores_rounded",
    ]
    assert "multiples of 0.01" in describe_scale(rounded)[1].message


def test_a_delta_below_half_a_step_does_not_arrive() -> None:
    box = torch_box(grid=255)
    small, large = torch.full((1, 1, 8, 8), 0.001), torch.full((1, 1, 8, 8), 0.01)
    assert diagnose_grid(torch_box(), large) == []
    assert [d.severity for d in diagnose_grid(box, large)] == ["info"]
    assert [d.severity for d in diagnose_grid(box, small)] == ["warning"]
    on_grid = (IMAGES * 255).round() / 255
    torch.testing.assert_close(box.ask((on_grid + small).clamp(0, 1)), NET(on_grid))
