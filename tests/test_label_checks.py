"""Labels that are not a model's classes are found out; hard classes are not taken for such."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bdaudit.data.label_checks import LabelDoubt, answers_by_class, doubt_labels


def answer(labels: Tensor, accuracy: Tensor, num_classes: int, seed: int) -> Tensor:
    """Answer right with the class's accuracy, and with any class otherwise."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(len(labels), generator=generator) < accuracy[labels]
    wrong = torch.randint(num_classes, labels.shape, generator=generator)
    return torch.where(right, labels, wrong)


def doubt(answers: Tensor, labels: Tensor, num_classes: int) -> LabelDoubt | None:
    return doubt_labels(answers_by_class(answers, labels, num_classes))


def labels_of(num_classes: int, n: int) -> Tensor:
    return torch.arange(num_classes).repeat_interleave(n)


def test_answers_are_counted_as_a_plain_loop_counts_them() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    answers = torch.tensor([0, 1, 1, 1, 2, 2])
    rows = answers_by_class(answers, labels, 4)
    assert [(r.right, r.total, r.mistaken_for, r.n_mistaken) for r in rows] == [
        (1, 3, 1, 2), (1, 2, 2, 1), (1, 1, None, 0), (0, 0, None, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("missing", range(9))
def test_a_class_folder_that_is_missing_shifts_the_later_ones(missing: int) -> None:
    """Nine of ten folders, numbered in sorted order: later classes get the label before theirs."""
    truth = labels_of(10, 45)
    answers = answer(truth, torch.full((10,), 0.85), 10, seed=missing)
    kept = truth != missing
    labels = truth - (truth > missing).long()
    found = doubt(answers[kept], labels[kept], 10)
    assert found is not None
    assert {*found.exchanged, *found.never_right} >= {8}
    assert set(found.exchanged) == set(range(missing, 9))


@pytest.mark.parametrize(("n", "accuracy"), [(45, 0.9), (20, 0.7), (100, 0.5)])
def test_two_classes_that_are_exchanged(n: int, accuracy: float) -> None:
    truth = labels_of(10, n)
    answers = answer(truth, torch.full((10,), accuracy), 10, seed=1)
    labels = truth.clone()
    labels[truth == 3], labels[truth == 7] = 7, 3
    found = doubt(answers, labels, 10)
    assert found is not None
    assert found.exchanged == (3, 7)


def test_similar_classes_that_are_exchanged() -> None:
    """A model that takes a share of each for the other: neither is never right."""
    truth = labels_of(10, 100)
    answers = truth.clone()
    answers[(truth == 3) & (torch.arange(1000) % 5 == 0)] = 5
    answers[(truth == 5) & (torch.arange(1000) % 7 == 0)] = 3
    assert doubt(answers, truth, 10) is None
    labels = truth.clone()
    labels[truth == 3], labels[truth == 5] = 5, 3
    found = doubt(answers, labels, 10)
    assert found is not None
    assert found.exchanged == (3, 5)


def test_all_classes_in_another_order() -> None:
    truth = labels_of(10, 30)
    answers = answer(truth, torch.full((10,), 0.9), 10, seed=2)
    found = doubt(answers, (truth + 1) % 10, 10)
    assert found is not None
    assert found.exchanged == tuple(range(10))


def test_a_class_that_is_never_right() -> None:
    truth = labels_of(10, 45)
    answers = answer(truth, torch.full((10,), 0.9), 10, seed=3)
    generator = torch.Generator().manual_seed(3)
    gone = truth == 4
    answers[gone] = (4 + torch.randint(1, 10, (int(gone.sum()),), generator=generator)) % 10
    found = doubt(answers, truth, 10)
    assert found == LabelDoubt((4,), (), found.others if found else 0.0)
    assert found is not None
    said = found.explain(answers_by_class(answers, truth, 10), [f"c{k}" for k in range(10)])
    assert "of 45 images labelled 4 (c4) 0 are taken for it" in said
    assert "--classes" in said


def test_many_classes_of_few_images() -> None:
    """Ten images a class say nothing alone; a hundred classes without a right answer do."""
    truth = labels_of(200, 10)
    answers = answer(truth, torch.full((200,), 0.5), 200, seed=4)
    kept = truth != 100
    labels = truth - (truth > 100).long()
    found = doubt(answers[kept], labels[kept], 200)
    assert found is not None
    assert len({*found.never_right, *found.exchanged}) > 60
    assert doubt(answers, truth, 200) is None


@pytest.mark.parametrize("seed", range(20))
def test_hard_classes_are_not_doubted(seed: int) -> None:
    """Accuracies from chance to perfect, and classes of three images that all go wrong."""
    generator = torch.Generator().manual_seed(seed)
    accuracy = torch.rand(10, generator=generator) * 0.7 + 0.3
    accuracy[seed % 10] = 0.15
    truth = torch.cat([labels_of(10, 40), torch.full((3,), 10)])
    answers = answer(truth, torch.cat([accuracy, torch.zeros(1)]), 11, seed)
    answers[truth == 10] = 2
    assert doubt(answers, truth, 11) is None


def test_a_class_that_goes_to_one_the_model_knows_is_not_exchanged() -> None:
    """As after a backdoor on one class, or a defence that lost most of it."""
    truth = labels_of(10, 40)
    answers = truth.clone()
    answers[(truth == 6) & (torch.arange(400) % 8 != 0)] = 0
    assert doubt(answers, truth, 10) is None


def test_one_class_alone_says_nothing() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    assert doubt(labels + 1, labels, 2) is None
