"""Target rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers import AllToAll, AllToOne, ClassMap, SourceSpecific, TargetRule

LABELS = torch.tensor([0, 1, 2, 3, 1])


@pytest.mark.parametrize(
    ("rule", "expected", "target"),
    [
        (AllToOne(1), [1, -1, 1, 1, -1], 1),
        (AllToAll(), [1, 2, 3, 0, 2], None),
        (SourceSpecific(0, (1, 3)), [-1, 0, -1, 0, 0], 0),
        (ClassMap((3, 1, 0, 2)), [3, -1, 0, 2, -1], None),
    ],
)
def test_targets_by_hand(rule: TargetRule, expected: list[int], target: int | None) -> None:
    targets = rule.targets(LABELS, 4)
    assert targets.tolist() == expected
    assert targets.dtype == torch.int64
    assert LABELS.tolist() == [0, 1, 2, 3, 1]
    assert rule.target_label == target


@settings(deadline=None)
@given(st.integers(2, 20), st.data())
def test_no_image_is_ever_taken_to_its_own_class(num_classes: int, data: st.DataObject) -> None:
    label = st.integers(0, num_classes - 1)
    labels = torch.tensor(data.draw(st.lists(label, min_size=1, max_size=20)))
    target = data.draw(label)
    sources = data.draw(st.sets(label.filter(lambda y: y != target), min_size=1))
    order = data.draw(st.permutations(range(num_classes)))
    rules: list[TargetRule] = [AllToOne(target), AllToAll()]
    rules.append(SourceSpecific(target, tuple(sources)))
    if order != sorted(order):
        rules.append(ClassMap(tuple(order)))
    for rule in rules:
        targets = rule.targets(labels, num_classes)
        assert not (targets == labels).any()
        assert targets.min() >= -1
        assert targets.max() < num_classes


@pytest.mark.parametrize(
    "rule",
    [AllToOne(4), SourceSpecific(0, (1, 4)), SourceSpecific(9, (1,)), ClassMap((1, 0, 3, 4))],
)
def test_classes_beyond_the_model(rule: TargetRule) -> None:
    with pytest.raises(TriggerError, match="out of range for a model of 4 classes"):
        rule.targets(LABELS, 4)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 2]])
@pytest.mark.parametrize("rule", [AllToOne(0), AllToAll()])
def test_labels_beyond_the_model(rule: TargetRule, labels: list[int]) -> None:
    with pytest.raises(TriggerError, match="do not belong together"):
        rule.targets(torch.tensor(labels), 4)


def test_a_map_of_another_number_of_classes() -> None:
    with pytest.raises(TriggerError, match="expected 4 classes like the model, got 3"):
        ClassMap((1, 2, 0)).targets(LABELS, 4)


def test_rules_that_contradict_themselves() -> None:
    with pytest.raises(ConfigError, match="-1"):
        AllToOne(-1)
    for sources in ((), (1, 1), (0, 1), (-2,)):
        with pytest.raises(ConfigError):
            SourceSpecific(0, sources)
    for classes in ((), (0, 1, 2), (1, -1)):
        with pytest.raises(ConfigError):
            ClassMap(classes)
