"""Reading from a model's answers where a trigger takes each class."""

from __future__ import annotations

import pytest
import torch

from bdaudit.inversion.arms import as_rivals, is_won
from bdaudit.inversion.class_map import class_map_of
from bdaudit.perturbation import cross_entropy, margin
from bdaudit.triggers import AllToAll, AllToOne, ClassMap, TargetRule

LABELS = torch.arange(4).repeat_interleave(10)


def answers(*to: int, kept: int = 2) -> torch.Tensor:
    """Ten images a class, of which `kept` stay and the rest go where `to` says."""
    sent = torch.tensor(to).repeat_interleave(10)
    stays = torch.arange(10).repeat(4) < kept
    return torch.where(stays, LABELS, sent)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (answers(1, 2, 3, 0), AllToAll()),
        (answers(3, 2, 1, 0), ClassMap((3, 2, 1, 0))),
        (answers(2, 2, 2, 2), AllToOne(2)),
        (answers(2, 2, 0, 2), AllToOne(2)),  # the target's own images may go anywhere
        (answers(1, 0, 2, 3), ClassMap((1, 0, 2, 3))),  # two classes stay, and do not count
        (answers(1, 1, 2, 3), ClassMap((1, 1, 2, 3))),  # one class of three goes to class 1
        (answers(1, 2, 3, 0, kept=8), AllToAll()),  # few are moved, but those in order
    ],
)
def test_the_rule_that_answers_follow(given: torch.Tensor, rule: TargetRule) -> None:
    assert class_map_of(LABELS, given, 4) == rule


def test_a_class_without_images_does_not_count() -> None:
    kept = LABELS != 3
    assert class_map_of(LABELS[kept], answers(2, 0, 1, 3)[kept], 4) == ClassMap((2, 0, 1, 3))


def test_any_other_class_as_a_target() -> None:
    """Against plain formulas: the cross-entropy is -log(1 - p(y)), and won is not y."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    pair = as_rivals(logits, ~labels)
    p_own = logits.softmax(1)[torch.arange(6), labels]
    assert torch.allclose(cross_entropy(*pair), -(1 - p_own).log(), atol=1e-6)
    assert torch.equal(margin(*pair) < 0, p_own < 0.5)
    assert torch.equal(is_won(logits.argmax(1), ~labels), logits.argmax(1) != labels)
    same, targets = as_rivals(logits, labels)
    assert same is logits
    assert targets is labels
