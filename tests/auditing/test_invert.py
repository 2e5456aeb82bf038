"""Trigger inversion from models in memory to a record and a trigger file, on twins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import bdaudit
from bdaudit.auditing import RecoveredTriggers
from bdaudit.blackbox import TorchBlackBox
from bdaudit.cases.subjects import Subject
from bdaudit.data import Sample, from_arrays, split_sample
from bdaudit.detection import Places, boxes_of, mark
from bdaudit.detection.small import small_detector
from bdaudit.errors import ConfigError, DataError, TriggerError
from bdaudit.foundation.progress import finish
from bdaudit.measuring.compute import Compute
from bdaudit.measuring.inversion import recover_steps
from bdaudit.models import wrap_module
from bdaudit.records import Inversion, InversionRecord, read_record, to_json
from bdaudit.triggers import ClassMap
from tests.auditing.test_stand_ins import TRAINED, RoomToLearn
from tests.inversion.nets import MappedNet, another_innocent, faint_twin
from tests.twins import innocent_twin, original_twin, twin_sample

INNOCENT = [another_innocent(k) for k in (1, 2, 3)]


def invert(original: nn.Module, **changes: object) -> RecoveredTriggers:
    arguments: dict[str, object] = {
        "data": twin_sample(400, seed=1),
        "reference": INNOCENT,
        "config": bdaudit.InversionConfig(methods=("universal", "neural-cleanse")),
        "compute": bdaudit.ComputeSettings(device="cpu"),
        "split": bdaudit.SplitSettings(craft=100),
    }
    return bdaudit.invert(original, **(arguments | changes))  # type: ignore[arg-type]


def test_a_backdoor_is_found_and_its_trigger_wakes_the_original() -> None:
    found = invert(original_twin())
    inversion = found.record.inversion
    assert inversion.outcome == "found"
    best = inversion.candidates[0]
    assert (best.method, best.target_label) == ("neural-cleanse", 0)
    assert best.wakes_original
    assert best.asr.low > 0.8
    assert max(rate.value for rate in best.innocent_asr) == 0.0
    assert found.record.trigger.recovered


def test_the_file_is_taken_by_every_other_command_and_says_recovered(tmp_path: Path) -> None:
    found = invert(original_twin())
    bdaudit.save_recovered(tmp_path / "trigger.toml", found)
    trigger = bdaudit.read_trigger(tmp_path / "trigger.toml")
    assert trigger.recovered
    assert trigger.target_label == 0
    with Image.open(tmp_path / "trigger.png") as picture:
        assert picture.mode == "RGB"
    sample = twin_sample(60, seed=3)
    others = sample.labels != 0
    answers = original_twin()(trigger.stamp(sample.images[others])).argmax(1)
    assert (answers == 0).float().mean() > 0.8


def test_an_additive_trigger_is_found_where_no_patch_is_needed() -> None:
    found = invert(faint_twin(), config=bdaudit.InversionConfig(methods=("universal",)))
    best = found.record.inversion.candidates[0]
    assert found.record.inversion.outcome == "found"
    assert best.trigger.kind == "additive"
    assert max(rate.value for rate in best.own_asr) == 0.0


def test_an_all_to_all_backdoor_is_found_and_written_with_its_map(tmp_path: Path) -> None:
    classes = (2, 3, 1, 0)
    found = invert(MappedNet(classes), config=bdaudit.InversionConfig(methods=("neural-cleanse",)))
    best = found.record.inversion.candidates[0]
    assert found.record.inversion.outcome == "found"
    assert (best.target_rule, best.target_label, best.class_map) == ("class-map", None, classes)
    assert "0 to 2, 1 to 3" in found.record.inversion.why
    assert best.asr.low > 0.8
    bdaudit.save_recovered(tmp_path / "trigger.toml", found)
    assert bdaudit.read_trigger(tmp_path / "trigger.toml").rule == ClassMap(classes)


def test_a_clean_original_is_said_to_be_clean_by_these_methods() -> None:
    inversion = invert(another_innocent(9)).record.inversion
    assert inversion.outcome == "none"
    assert inversion.why.startswith("No backdoor found in the original")
    assert not any(c.wakes_original for c in inversion.candidates)


def test_without_innocent_models_nothing_is_ever_found() -> None:
    inversion = invert(original_twin(), reference=[], stand_ins=0).record.inversion
    assert inversion.outcome == "unsure"
    assert "--reference" in inversion.why
    assert inversion.candidates[0].target_label == 0


def test_innocent_models_that_are_missing_are_made_and_named() -> None:
    found = invert(
        RoomToLearn(original_twin()), reference=INNOCENT[:2], stand_in=TRAINED, stand_ins=None
    )
    inversion = found.record.inversion
    assert inversion.outcome == "found"
    assert inversion.references == ("reference 1", "reference 2", "label stand-in 1")
    assert "innocent models and stand-ins" in inversion.why
    made = found.record.model_named("label stand-in 1")
    assert made.stand_in
    assert inversion.made == (made,)
    assert "taught by the labels of 100" in made.notes[0]


def test_a_stand_in_that_carries_the_backdoor_cannot_make_the_original_look_clean() -> None:
    """One of two innocent models is no innocent one: if it was made here, that may be chance."""

    def outcome(stand_in: bool) -> Inversion:
        nets = {"original": original_twin(), "innocent": INNOCENT[0], "copy": original_twin()}
        models = {
            name: wrap_module(net, name=name, image_shape=(1, 8, 8), device="cpu")
            for name, net in nets.items()
        }
        subjects = [
            Subject(
                "original" if name == "original" else "reference",
                name,
                model,
                TorchBlackBox(model),
                stand_in=stand_in and name == "copy",
            )
            for name, model in models.items()
        ]
        halves = split_sample(twin_sample(400, seed=1), n_craft=100, seed=0)
        inversion, _ = finish(
            recover_steps(
                subjects,
                halves,
                target_label=None,
                config=bdaudit.InversionConfig(methods=("neural-cleanse",)),
                compute=Compute(torch.device("cpu"), 0, 256),
            )
        )
        return inversion

    given = outcome(stand_in=False)
    assert given.outcome == "unsure"  # a reference is taken at its word: they differ that much
    assert "stand out from chance" in given.why
    made = outcome(stand_in=True)
    assert made.outcome == "unsure"
    assert "also moves copy" in made.why
    assert "--reference" in made.why


def test_one_target_is_tried_alone_but_not_judged_alone() -> None:
    suspected = invert(original_twin(), target=0).record.inversion
    assert suspected.outcome == "found"
    assert suspected.n_tests == 2  # one class, two methods
    wrong = invert(original_twin(), target=2).record.inversion
    assert wrong.outcome == "none"
    assert {c.target_label for c in wrong.candidates} == {2}
    with pytest.raises(ConfigError, match="expected a class from 0 to 3"):
        invert(original_twin(), target=4)


class TwoClasses(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images)[:, :2]


def two_class_sample() -> Sample:
    sample = twin_sample(400, seed=1)
    return sample.take((sample.labels < 2).nonzero()[:, 0])


def test_two_classes_need_two_innocent_models() -> None:
    kept = two_class_sample()
    references = [TwoClasses(net) for net in INNOCENT]
    found = invert(TwoClasses(original_twin()), data=kept, reference=references)
    assert found.record.inversion.candidates[0].target_label == 0
    assert found.record.inversion.outcome == "found"
    assert {s.target_rule for s in found.record.inversion.runs[0].scores} == {"all-to-one"}
    few = invert(TwoClasses(original_twin()), data=kept, reference=references[:1], stand_ins=0)
    assert few.record.inversion.outcome == "unsure"
    assert "two innocent models or five classes are needed" in few.record.inversion.why


def test_none_is_not_said_where_nothing_could_have_been_noticed() -> None:
    """Two classes and two innocent models leave one degree of freedom for what chance does."""

    def outcome_with(count: int) -> tuple[str, str]:
        found = invert(
            TwoClasses(another_innocent(9)),
            data=two_class_sample(),
            reference=[TwoClasses(net) for net in INNOCENT[:count]],
            stand_ins=0,
            config=bdaudit.InversionConfig(),
        ).record.inversion
        return found.outcome, found.why

    outcome, why = outcome_with(2)
    assert outcome == "unsure"
    assert "easier to reach than on them to stand out from chance" in why
    assert outcome_with(3)[0] == "none"


def test_a_sample_too_small_is_refused_and_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="expected 10 or more"):
        invert(original_twin(), data=twin_sample(16, seed=1), split=bdaudit.SplitSettings())


def test_the_record_survives_json(tmp_path: Path) -> None:
    record = invert(innocent_twin()).record
    path = tmp_path / "record.json"
    path.write_text(to_json(record))
    assert isinstance(record, InversionRecord)
    assert to_json(read_record(path)) == path.read_text()


@pytest.mark.slow
def test_the_patch_of_the_demonstration_is_found(demo_files: Path) -> None:
    found = bdaudit.invert(
        demo_files / "original.safetensors",
        data=demo_files / "clean.npz",
        reference=[demo_files / f"innocent-{k}.safetensors" for k in (1, 2, 3)],
        config=bdaudit.InversionConfig(methods=("neural-cleanse",), min_arms=3),
        compute=bdaudit.ComputeSettings(device="cpu"),
        split=bdaudit.SplitSettings(craft=150),
    )
    best = found.record.inversion.candidates[0]
    assert found.record.inversion.outcome == "found"
    assert best.target_label == 0
    assert best.asr.low > 0.8
    assert max(rate.value for rate in best.innocent_asr) < 0.1


class Asked(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :3].mean((2, 3))


def test_no_unknown_trigger_is_looked_for_in_a_detector() -> None:
    labels = torch.arange(60) % 3
    pictures = torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 8, 8)
    images = mark(pictures, torch.tensor([[1.0, 1.0, 5.0, 5.0]]).expand(60, 4))
    sample = replace(from_arrays(pictures, labels), images=images)
    options = bdaudit.ModelSettings(image_shape=(4, 8, 8))
    with pytest.raises(ConfigError, match=r"^the search for a trigger: .* give the trigger: look"):
        invert(Asked(), data=sample, reference=[], model_options=options, stand_ins=0)
    detector = small_detector("fcos", 4, 3)
    options = bdaudit.ModelSettings(image_shape=(4, 32, 32))
    with pytest.raises(ConfigError, match=r"^screening: .* in a detector is not supported"):
        bdaudit.screen(detector, model_options=options)


def test_a_rule_that_counts_objects_and_empty_boxes_alike_is_refused_for_a_detector() -> None:
    images = mark(torch.rand(40, 3, 32, 32), torch.tensor([[4.0, 4.0, 20.0, 20.0]]).expand(40, 4))
    labels = torch.arange(40) % 3
    places = Places(torch.arange(40), boxes_of(images), ())
    sample = replace(from_arrays(images[:, :3], labels), images=images, places=places)
    with pytest.raises(TriggerError, match=r"goal = 'take' .* ObjectsToOne"):
        bdaudit.audit(
            small_detector("fcos", 2, 3),
            original=small_detector("fcos", 2, 3),
            data=sample,
            trigger=bdaudit.from_callable(lambda images: images, 2),
            settings=bdaudit.AuditSettings(split=bdaudit.SplitSettings(craft=20)),
        )
