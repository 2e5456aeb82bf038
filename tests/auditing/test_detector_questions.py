"""What an audit of detectors must not be misled by; no detector is asked here."""

from __future__ import annotations

import pytest
import torch

from bdaudit.cases.target import demand_goal
from bdaudit.detection import mark
from bdaudit.errors import TriggerError
from bdaudit.measuring.baselines import check_baselines
from bdaudit.measuring.conditions import attack_images
from bdaudit.records import ClassAnswers
from bdaudit.triggers import (
    AllToAll,
    AllToOne,
    ObjectsToOne,
    OnObject,
    Poisoned,
    SourceSpecific,
    TargetRule,
    Trigger,
)
from tests.records import baseline

CLASSES = 4


def seen(right: int) -> tuple[ClassAnswers, ...]:
    """30 objects of each of three classes, of which so many are right, and 200 empty places."""
    empty = ClassAnswers(right=200, total=200)
    return (empty, *(ClassAnswers(right=right, total=30) for _ in range(CLASSES - 1)))


@pytest.mark.parametrize(("right", "doubted"), [(0, True), (27, False)])
def test_one_that_sees_nothing_is_no_detector_at_all(right: int, doubted: bool) -> None:
    clean = (200 + 3 * right) / 290
    told = baseline("defended", "defended", asr=0.0, clean_acc=clean).model_copy(
        update={"by_class": seen(right)}
    )
    doubts = {
        doubt.code: doubt.severity
        for doubt in check_baselines([told], CLASSES, max_clean_acc_loss=0.1, detects=True)
    }
    assert (doubts.get("clean_accuracy_near_chance") == "error") == doubted


def trigger(rule: TargetRule) -> Trigger:
    return Trigger(transform=OnObject(image=torch.ones(3, 2, 2), share=0.5), rule=rule)


@pytest.mark.parametrize("rule", [AllToOne(2), AllToAll(), SourceSpecific(2, (0, 1))])
def test_objects_and_empty_places_are_not_counted_together(rule: TargetRule) -> None:
    with pytest.raises(TriggerError, match="objects and empty boxes"):
        demand_goal(trigger(rule), CLASSES)


@pytest.mark.parametrize("rule", [AllToOne(0), ObjectsToOne(2), SourceSpecific(2, (0,))])
def test_the_three_goals_are_taken(rule: TargetRule) -> None:
    demand_goal(trigger(rule), CLASSES)


@pytest.mark.parametrize(("label", "target"), [(0, 1), (1, 2), (2, 0)])
def test_a_wrong_target_is_another_class_of_objects(label: int, target: int) -> None:
    images = mark(torch.rand(12, 3, 8, 8), torch.tensor([[2.0, 2.0, 6.0, 6.0]]).expand(12, 4))
    half = Poisoned(
        clean=images,
        triggered=images,
        labels=torch.full((12,), label),
        targets=torch.full((12,), target),
        indices=torch.arange(12),
    )
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        arranged = attack_images(
            "wrong_target", half, half, num_classes=CLASSES, generator=generator
        )
        wrong = arranged.target_label
        assert wrong not in (0, label, target)
        assert len(arranged.craft.images) == 12
