"""References are looked at before anything is held against them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.measuring.baselines import check_baselines
from bdaudit.measuring.innocents import trigger_moves_innocents
from bdaudit.records import AuditRecord
from bdaudit.verdict import Policy
from tests.auditing.test_audit import SETTINGS, TRIGGER, another_innocent, audit
from tests.auditing.test_stand_ins import TRAINED
from tests.auditing.test_stand_ins import dormant_twin as teachable_dormant_twin
from tests.auditing.test_stand_ins import original_twin as teachable_original_twin
from tests.auditing.test_stand_ins import removed_twin as teachable_removed_twin
from tests.blackbox.onnx_graphs import twin_onnx
from tests.records import baseline
from tests.twins import (
    NUM_CLASSES,
    TwinNet,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
)


def ignorant(seed: int) -> TwinNet:
    """A reference that answers the class after the true one: it did not learn the task."""
    net = another_innocent(seed)
    assert isinstance(net, TwinNet)
    with torch.no_grad():
        net.linear.weight.copy_(net.linear.weight.roll(1, dims=0))
    return net


def reason(record: AuditRecord, name: str) -> str:
    alone = record.baseline_of(name)
    assert alone is not None
    return alone.left_out or ""


def outcome(record: AuditRecord) -> str:
    assert record.verdict is not None
    return record.verdict.outcome


def test_a_reference_that_did_not_learn_is_left_out_everywhere() -> None:
    record = audit(removed_twin(), reference=[another_innocent(1), ignorant(2)])
    assert reason(record, "reference 1") == ""
    assert "clean accuracy, 0.0%, is 100.0 points below the defended model's" in reason(
        record, "reference 2"
    )
    assert {r.model for r in record.runs_of(role="reference")} == {"reference 1"}
    assert [b.reference for b in record.bec] == ["reference 1"]
    assert "clean_accuracy_near_chance" not in {d.code for d in record.diagnostics}
    (told,) = [d for d in record.diagnostics if d.code == "reference_left_out"]
    assert (told.subject, told.severity) == ("reference 2", "warning")
    assert outcome(record) == "removed"


@pytest.mark.parametrize("twin", [removed_twin, dormant_twin])
def test_the_references_that_remain_decide_what_may_be_said(twin: object) -> None:
    policy = Policy(min_references=3)
    defended = twin()  # type: ignore[operator]
    bad = [ignorant(1), ignorant(2), ignorant(3)]
    record = audit(defended, reference=bad, policy=policy)
    assert outcome(record) == "inconclusive"
    assert record.verdict is not None
    assert "innocent models, got 0" in record.verdict.why
    assert "reference 3 left out: its clean accuracy" in record.verdict.why
    good = [another_innocent(1), another_innocent(2), another_innocent(3)]
    assert outcome(audit(defended, reference=[*good, *bad], policy=policy)) in (
        "removed",
        "dormant",
    )


def test_stand_ins_are_made_for_references_that_are_left_out() -> None:
    settings = replace(SETTINGS, stand_ins=None, stand_in=TRAINED)
    record = audit(
        teachable_removed_twin(),
        original=teachable_original_twin(),
        reference=[another_innocent(1), ignorant(2), ignorant(3)],
        settings=settings,
        policy=Policy(min_references=3),
    )
    assert [b.model for b in record.baselines if b.role == "reference"] == [
        "reference 1",
        "reference 2",
        "reference 3",
        "stand-in 1",
        "stand-in 2",
    ]
    assert outcome(record) == "removed"
    assert {s.name: s.status for s in record.steps}["baselines"] == "done"


class Wrapped(nn.Module):
    """Another file for the same weights: other names, and a tensor that does nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("n_averaged", torch.tensor(7))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


@pytest.mark.parametrize("as_it_is", [True, False])
@pytest.mark.parametrize(
    ("model", "whose"),
    [
        (removed_twin, "defended"),
        (original_twin, "original"),
        (lambda: another_innocent(1), "reference 1"),
    ],
)
def test_a_copy_of_another_model_is_no_reference(model: object, whose: str, as_it_is: bool) -> None:
    net = model()  # type: ignore[operator]
    record = audit(
        removed_twin(),
        reference=[another_innocent(1), net if as_it_is else Wrapped(net), another_innocent(2)],
    )
    assert f"it is the same model as {whose}" in reason(record, "reference 2")
    assert reason(record, "reference 1") == reason(record, "reference 3") == ""
    assert outcome(record) == "removed"


def test_a_copy_in_half_precision_is_a_copy() -> None:
    half = another_innocent(1)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.copy_(parameter.half().float())
    record = audit(removed_twin(), reference=[another_innocent(1), half])
    assert "the same model as reference 1" in reason(record, "reference 2")


def test_other_statistics_of_batch_norm_make_another_model() -> None:
    def with_statistics(mean: float) -> nn.Module:
        net = teachable_removed_twin()
        with torch.no_grad():
            net.branch[1].running_mean.fill_(mean)  # type: ignore[index, operator, union-attr]
            net.read.weight.fill_(0.01)  # type: ignore[operator, union-attr]
            net.read.weight[0].fill_(0.02)  # type: ignore[index, operator, union-attr]
        return net

    record = audit(with_statistics(0.0), reference=[with_statistics(0.3), with_statistics(0.0)])
    assert reason(record, "reference 1") == ""
    assert "the same model as defended" in reason(record, "reference 2")


def test_a_checkpoint_of_the_model_behind_an_onnx_file_is_no_reference(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, mode=("query",), cold=True, eps=(0.05,), max_queries=400, bec=False
    )
    record = audit(
        twin_onnx(tmp_path / "d.onnx", removed_twin()),  # type: ignore[arg-type]
        reference=[removed_twin(), another_innocent(1)],
        settings=settings,
    )
    assert "it is the same model as defended: they give the same scores" in reason(
        record, "reference 1"
    )
    assert reason(record, "reference 2") == ""


def test_the_same_model_in_two_files_never_passes_as_original_and_defended() -> None:
    record = audit(Wrapped(removed_twin()), original=removed_twin())
    assert outcome(record) == "inconclusive"
    assert "same_weights" in {d.code for d in record.diagnostics}


def test_score_and_relearn_hold_nothing_against_an_unfit_reference() -> None:
    given = {
        "data": twin_sample(400, seed=2),
        "trigger": TRIGGER,
        "reference": [ignorant(1), another_innocent(1)],
        "compute": bdaudit.ComputeSettings(device="cpu"),
        "split": bdaudit.SplitSettings(craft=100),
        "stand_ins": 0,
    }
    scored = bdaudit.score(dormant_twin(), original=original_twin(), **given)  # type: ignore[arg-type]
    assert [b.reference for b in scored.bec] == ["reference 2"]
    assert {d.code for d in scored.diagnostics} == {"reference_left_out"}
    relearned = bdaudit.relearn(
        dormant_twin(),
        config=bdaudit.RelearnConfig(shots=2, steps=(2,), draws=1, learning_rates=(0.001,)),
        **given,  # type: ignore[arg-type]
    )
    assert {c.model for c in relearned.relearning.curves} == {"defended", "reference 2"}


def test_score_makes_a_stand_in_where_no_reference_serves() -> None:
    record = bdaudit.score(
        teachable_dormant_twin(),
        original=teachable_original_twin(),
        data=twin_sample(400, seed=2),
        trigger=TRIGGER,
        reference=[ignorant(1)],
        stand_in=TRAINED,
        split=bdaudit.SplitSettings(craft=100),
        compute=bdaudit.ComputeSettings(device="cpu"),
    )
    assert [b.reference for b in record.bec] == ["stand-in 1"]


def test_reactivate_attacks_no_unfit_reference() -> None:
    found = bdaudit.reactivate(
        dormant_twin(),
        data=twin_sample(400, seed=5),
        trigger=TRIGGER,
        reference=[ignorant(1), another_innocent(1)],
        config=bdaudit.WhiteboxConfig(eps=0.05, n_passes=2),
        compute=bdaudit.ComputeSettings(device="cpu"),
    )
    assert {r.model for r in found.record.runs if r.role == "reference"} == {"reference 2"}
    assert "clean accuracy" in next(
        b.left_out or "" for b in found.record.baselines if b.model == "reference 1"
    )


def test_an_original_that_knows_far_less_than_the_others_is_an_error() -> None:
    poor = original_twin()
    with torch.no_grad():
        poor.linear.weight[NUM_CLASSES - 1].zero_()  # one class of four is never answered
        poor.linear.weight[NUM_CLASSES - 2].zero_()
    record = audit(removed_twin(), original=poor)
    (told,) = [d for d in record.diagnostics if d.code == "original_did_not_learn"]
    assert told.severity == "error"
    assert "clean accuracy is 50.0%" in told.message
    assert outcome(record) == "inconclusive"
    assert "original_did_not_learn" not in {d.code for d in audit(removed_twin()).diagnostics}


@pytest.mark.parametrize(("clean_acc", "told"), [(0.60, True), (0.80, False)])
def test_an_original_is_held_against_the_best_of_those_that_serve(
    clean_acc: float, told: bool
) -> None:
    baselines = [
        baseline("defended", "defended", asr=0.02, clean_acc=0.62),
        baseline("original", "original", asr=1.0, clean_acc=clean_acc),
        baseline("reference 1", "reference", asr=0.02, clean_acc=0.9),
        baseline("reference 2", "reference", asr=0.02, clean_acc=1.0).model_copy(
            update={"left_out": "a copy"}
        ),
    ]
    found = {d.code for d in check_baselines(baselines, 10, max_clean_acc_loss=0.1)}
    assert ("original_did_not_learn" in found) == told


def test_a_trigger_that_moves_half_of_the_innocent_models_may_be_a_feature() -> None:
    def doubts(*asr: float) -> list[str]:
        baselines = [baseline("defended", "defended", asr=0.02)]
        for number, share in enumerate(asr):
            one = baseline(f"reference {number}", "reference", asr=share)
            moved = bdaudit_reason(share)
            baselines.append(one.model_copy(update={"left_out": moved}))
        return [d.code for d in trigger_moves_innocents(baselines, Policy(), wide=False)]

    def bdaudit_reason(share: float) -> str | None:
        from bdaudit.measuring.innocents import looks_moved
        from tests.records import rate

        return looks_moved(rate(share), rate(0.01), 0.10)

    assert doubts(0.9) == ["trigger_moves_innocents"]
    assert doubts(0.9, 0.02) == ["trigger_moves_innocents"]
    assert doubts(0.9, 0.02, 0.02) == []
    assert doubts(0.02) == []


def test_a_search_for_the_trigger_leaves_out_an_unfit_reference() -> None:
    copied = copy.deepcopy(original_twin())
    found = bdaudit.invert(
        original_twin(),
        data=twin_sample(400, seed=3),
        reference=[innocent_twin(), ignorant(1), Wrapped(copied)],
        target=0,
        stand_ins=0,
        config=bdaudit.InversionConfig(methods=("universal",)),
        compute=bdaudit.ComputeSettings(device="cpu"),
    )
    inversion = found.record.inversion
    assert inversion.references == ("reference 1",)
    assert "points below the original's" in inversion.left_out["reference 2"]
    assert "the same model as original" in inversion.left_out["reference 3"]
    codes = [d.code for d in found.record.diagnostics]
    assert codes.count("reference_left_out") == 2
