"""Data whose classes are not the model's: refused, or an error, before anything learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bdaudit
from bdaudit.cases.opening import open_models
from bdaudit.cases.sources import Sources
from bdaudit.data import Sample
from bdaudit.errors import DataError
from bdaudit.models import ModelSettings
from bdaudit.records import Diagnostic
from tests.twins import (
    TARGET,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_trigger,
)

OPTIONS = ModelSettings(num_classes=4)


def shifted(n: int = 400) -> Sample:
    """As the folders of classes 0 to 2 give it where that of class 1 is missing."""
    sample = twin_sample(n, seed=1)
    kept = (sample.labels != 1).nonzero()[:, 0]
    left = sample.take(kept)
    return replace(left, labels=left.labels - (left.labels > 1).long())


def opened(sample: Sample, classes: list[str] | None = None) -> Sample:
    sources = Sources.of(
        defended=removed_twin(), data=sample, trigger=None, classes=classes, model_options=OPTIONS
    )
    return open_models(sources, device=torch.device("cpu"))[1]


def test_names_for_fewer_classes_than_the_model_has() -> None:
    sample = shifted()
    with pytest.raises(DataError, match=r"4 classes like defended, got 3 by .*: a, c, d"):
        opened(replace(sample, class_names=("a", "c", "d")))
    with pytest.raises(DataError, match=r"got 5 .*without images: b \(class 1\), e \(class 4\)"):
        opened(replace(twin_without(1), class_names=("a", "b", "c", "d", "e")))


def twin_without(label: int) -> Sample:
    sample = twin_sample(80, seed=1)
    return sample.take((sample.labels != label).nonzero()[:, 0])


def test_a_class_without_images_is_said() -> None:
    named = replace(twin_without(1), class_names=("a", "b", "c", "d"))
    assert opened(named).notes == ("no images of 1 of 4 classes: b (class 1)",)
    assert opened(twin_without(2)).notes == ("no images of 1 of 4 classes: 2",)
    assert opened(twin_sample(80, seed=1)).notes == ()


def test_names_given_for_a_sample_in_memory() -> None:
    sample = twin_sample(80, seed=1)
    assert opened(sample, ["a", "b", "c", "d"]).class_names == ("a", "b", "c", "d")
    named = replace(sample, class_names=("a", "b", "c", "d"))
    with pytest.raises(DataError, match="the same order"):
        opened(named, ["b", "a", "c", "d"])
    with pytest.raises(DataError, match="out of range"):
        opened(sample, ["a", "b", "c"])


def audited(sample: Sample, **models: object) -> tuple[Diagnostic, ...]:
    record = bdaudit.audit(
        models.get("defended", removed_twin()),  # type: ignore[arg-type]
        original=original_twin(),
        reference=[innocent_twin()],
        data=sample,
        trigger=bdaudit.from_callable(twin_trigger, TARGET),
        settings=bdaudit.AuditSettings(eps=(0.1,), bec=False, stand_ins=0),
        model_options=OPTIONS,
    )
    assert record.verdict is not None
    assert record.verdict.outcome != "removed"
    (defended, *_) = record.baselines
    assert sum(row.right for row in defended.by_class) == defended.clean_acc.successes
    return record.diagnostics


def test_an_audit_on_shifted_labels_is_an_error() -> None:
    found = [d for d in audited(shifted()) if d.code == "labels_do_not_match"]
    assert {d.subject for d in found} == {"defended", "original", "reference"}
    assert {d.severity for d in found} == {"error"}
    assert "labelled 1 0 are taken for it" in found[0].message


def test_a_class_that_only_the_defended_model_lost() -> None:
    defended = removed_twin()
    with torch.no_grad():
        defended.linear.bias[2] -= 100.0
    found = [d for d in audited(twin_sample(400, seed=1), defended=defended) if "class" in d.code]
    assert [(d.code, d.severity, d.subject) for d in found] == [
        ("class_lost", "warning", "defended")
    ]


def _defend(sample: Sample, folder: Path) -> object:
    return bdaudit.defend(
        original_twin(),
        data=sample,
        trigger=bdaudit.from_callable(twin_trigger, TARGET),
        folder=folder,
        model_options=OPTIONS,
    )


def _relearn(sample: Sample, folder: Path) -> object:
    return bdaudit.relearn(
        removed_twin(),
        reference=[innocent_twin()],
        data=sample,
        trigger=bdaudit.from_callable(twin_trigger, TARGET),
        model_options=OPTIONS,
    )


def _score(sample: Sample, folder: Path) -> object:
    return bdaudit.score(
        removed_twin(),
        original=original_twin(),
        data=sample,
        trigger=bdaudit.from_callable(twin_trigger, TARGET),
        model_options=OPTIONS,
    )


def _invert(sample: Sample, folder: Path) -> object:
    return bdaudit.invert(original_twin(), data=sample, model_options=OPTIONS)


@pytest.mark.parametrize("verb", [_defend, _relearn, _score, _invert])
def test_nothing_is_taught_by_shifted_labels(
    verb: Callable[[Sample, Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(torch.Tensor, "backward", no_training)
    monkeypatch.setattr(torch.autograd, "grad", no_training)
    with pytest.raises(DataError, match="labels probably do not match"):
        verb(shifted(), tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_labels_that_are_as_good_as_chance_are_not_taught_either() -> None:
    sample = twin_sample(400, seed=1)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sample), generator=generator)
    with pytest.raises(DataError, match=r"as labelled, chance is 25\.0%"):
        _relearn(replace(sample, labels=sample.labels[order]), Path())
