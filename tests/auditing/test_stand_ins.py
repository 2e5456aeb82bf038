"""Audits that make their own innocent models, on twins whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress
from bdaudit.measuring.innocents import assess_innocents
from bdaudit.records import AuditRecord
from bdaudit.verdict import Policy
from tests.auditing.test_audit import SETTINGS as NO_STAND_INS
from tests.auditing.test_audit import TRIGGER, another_innocent
from tests.records import baseline
from tests.twins import NUM_CLASSES, twin_sample
from tests.twins import dormant_twin as bare_dormant_twin
from tests.twins import original_twin as bare_original_twin
from tests.twins import removed_twin as bare_removed_twin

TRAINED = bdaudit.StandInConfig(n_images=5_000, max_shift=0.0)
UNTRAINED = bdaudit.StandInConfig(n_images=64)
SETTINGS = replace(NO_STAND_INS, stand_ins=None, stand_in=TRAINED)


class RoomToLearn(nn.Module):
    """A twin that can be trained: beside its three channels a branch whose weights are zero.

    Nothing the twin answers changes. With fresh weights for both, the branch learns the blocks.
    """

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin
        torch.manual_seed(0)
        self.branch = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.read = nn.Linear(8 * 16, NUM_CLASSES)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.twin(images) + self.read(self.branch(images).flatten(1))
        return logits


def dormant_twin() -> nn.Module:
    return RoomToLearn(bare_dormant_twin())


def removed_twin() -> nn.Module:
    return RoomToLearn(bare_removed_twin())


def original_twin() -> nn.Module:
    return RoomToLearn(bare_original_twin())


def audit(defended: nn.Module, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "settings": SETTINGS,
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


def made(record: AuditRecord) -> list[str]:
    return [b.model for b in record.baselines if b.stand_in]


def test_an_audit_without_references_makes_three_and_gives_a_full_record() -> None:
    record = audit(dormant_twin())
    names = ["stand-in 1", "stand-in 2", "stand-in 3"]
    assert made(record) == names
    assert [m.name for m in record.models if m.stand_in] == names
    assert all("taught by defended" in record.model_named(name).notes[0] for name in names)
    for name in names:
        alone = record.baseline_of(name)
        assert alone is not None
        assert alone.left_out is None, alone
        assert alone.clean_acc.value > 0.95
        conditions = {r.condition for r in record.runs if r.model == name}
        assert conditions == {"trigger", "no_trigger"}
    assert [b.reference for b in record.bec] == names
    assert all(b.value is not None for b in record.bec)
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert "stand-ins for innocent models" in record.verdict.why
    assert {s.name: s.status for s in record.steps}["stand-ins"] == "done"


def test_references_come_first_and_only_what_is_missing_is_made() -> None:
    record = audit(removed_twin(), reference=[another_innocent(1), another_innocent(2)])
    assert made(record) == ["stand-in 1"]
    assert [b.model for b in record.baselines if b.role == "reference"] == [
        "reference 1",
        "reference 2",
        "stand-in 1",
    ]
    three = audit(removed_twin(), reference=[another_innocent(k) for k in (1, 2, 3)])
    assert made(three) == []


def test_what_did_not_learn_the_task_is_shown_and_left_out() -> None:
    record = audit(dormant_twin(), settings=replace(SETTINGS, stand_ins=2, stand_in=UNTRAINED))
    for name in ("stand-in 1", "stand-in 2"):
        alone = record.baseline_of(name)
        assert alone is not None
        assert "clean accuracy" in (alone.left_out or "")
        assert record.model_named(name).stand_in
        assert not [r for r in record.runs if r.model == name]
    assert [d.code for d in record.diagnostics].count("stand_in_left_out") == 2
    assert "clean_accuracy_near_chance" not in {d.code for d in record.diagnostics}
    assert record.bec == ()
    assert "none is usable" in (record.bec_missing or "")
    # A local trigger can be judged by the controls on the defended model.
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"


def test_unfit_stand_ins_are_no_innocent_models_where_those_are_needed() -> None:
    settings = replace(SETTINGS, stand_in=UNTRAINED)
    policy = Policy(min_references=3)
    record = audit(removed_twin(), settings=settings, policy=policy)
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "stand-in 1 left out" in record.verdict.why
    fit = audit(removed_twin(), policy=policy)
    assert fit.verdict is not None
    assert fit.verdict.outcome == "removed", fit.verdict


def test_a_network_without_fresh_weights_is_audited_as_if_none_were_wanted() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dormant_twin()
            self.shift = nn.Parameter(torch.zeros(1, 4), requires_grad=False)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images)
            return logits + self.shift

    record = audit(Bare())
    assert made(record) == []
    (told,) = [d for d in record.diagnostics if d.code == "no_stand_ins"]
    assert told.severity == "warning"
    assert "reset_parameters" in told.message
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"


def test_the_same_seed_makes_the_same_stand_ins_and_a_cache_spares_them(tmp_path: object) -> None:
    settings = replace(SETTINGS, stand_ins=1, bec=False)
    heard: list[Progress] = []
    first = audit(removed_twin(), settings=settings, cache_dir=tmp_path)
    again = audit(removed_twin(), settings=settings, cache_dir=tmp_path, listener=heard.append)
    assert (
        first.model_named("stand-in 1").weights_sha256
        == again.model_named("stand-in 1").weights_sha256
    )
    assert len([event for event in heard if "taught by" in event.step]) == 1
    other = replace(settings, compute=replace(settings.compute, seed=1))
    assert (
        audit(removed_twin(), settings=other).model_named("stand-in 1").weights_sha256
        != first.model_named("stand-in 1").weights_sha256
    )


@pytest.mark.parametrize("config", [TRAINED, UNTRAINED])
def test_progress_rises_to_the_total(config: bdaudit.StandInConfig) -> None:
    heard: list[Progress] = []
    settings = replace(SETTINGS, stand_ins=2, stand_in=replace(config, n_images=64))
    audit(removed_twin(), settings=settings, listener=heard.append)
    positions = [event.done / event.total for event in heard if event.total > 3]
    assert positions == sorted(positions)
    assert 0.9 < positions[-1] <= 1.0


def test_a_model_that_can_only_be_asked_is_not_asked_for_its_stand_ins() -> None:
    asked: list[int] = []
    network = dormant_twin()

    def answer(images: Tensor) -> Tensor:
        asked.append(len(images))
        with torch.no_grad():
            return network(images)  # type: ignore[no-any-return]

    def total(stand_ins: int) -> tuple[int, AuditRecord]:
        asked.clear()
        settings = replace(
            SETTINGS, mode=("query",), cold=True, max_queries=400, eps=(0.05,), bec=False,
            stand_ins=stand_ins,
        )  # fmt: skip
        record = audit(answer, settings=settings)  # type: ignore[arg-type]
        return sum(asked), record

    without, _ = total(0)
    with_one, record = total(1)
    assert with_one == without
    assert "taught by original" in record.model_named("stand-in 1").notes[0]
    alone = record.baseline_of("stand-in 1")
    assert alone is not None
    assert alone.left_out is None


def test_score_without_a_reference_measures_bec_against_a_stand_in() -> None:
    def score(**changes: object) -> bdaudit.ScoreRecord:
        arguments: dict[str, object] = {
            "original": original_twin(),
            "data": twin_sample(400, seed=2),
            "trigger": TRIGGER,
            "stand_in": TRAINED,
            "split": bdaudit.SplitSettings(craft=100),
            "compute": bdaudit.ComputeSettings(device="cpu"),
        }
        return bdaudit.score(dormant_twin(), **(arguments | changes))  # type: ignore[arg-type]

    record = score()
    assert [b.reference for b in record.bec] == ["stand-in 1"]
    assert record.bec[0].value is not None
    assert record.model_named("stand-in 1").stand_in
    given = score(reference=[another_innocent(1)])
    assert [b.reference for b in given.bec] == ["reference"]
    unfit = score(stand_in=UNTRAINED)
    assert unfit.bec == ()
    codes = {d.code for d in unfit.diagnostics}
    assert {"stand_in_left_out", "bec_undefined"} <= codes
    none = score(stand_ins=0)
    assert none.bec == ()
    assert not [m for m in none.models if m.stand_in]


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    ("clean_acc", "asr", "said"),
    [
        (0.85, 0.05, None),
        (0.79, 0.05, "clean accuracy"),
        (0.85, 0.10, None),
        (0.85, 0.15, "the trigger alone takes"),
    ],
)
def test_the_limits_of_the_policy_decide_who_is_fit(
    clean_acc: float, asr: float, said: str | None, made: bool
) -> None:
    innocent = baseline("innocent", "reference", asr=asr, clean_acc=clean_acc)
    baselines = [
        baseline("defended", "defended", asr=0.02, clean_acc=0.9),
        innocent.model_copy(update={"stand_in": made}),
    ]
    (_, assessed), diagnostics = assess_innocents(baselines, Policy(), unfit={}, wide=False)
    assert (assessed.left_out is None) == (said is None)
    assert said is None or said in (assessed.left_out or "")
    code = "stand_in_left_out" if made else "reference_left_out"
    assert [d.code for d in diagnostics] == ([] if said is None else [code])
    loose = Policy(max_stand_in_acc_loss=0.5, max_stand_in_asr=0.5)
    assert assess_innocents(baselines, loose, unfit={}, wide=False)[1] == []


@pytest.mark.parametrize(
    ("made", "asr", "fits"), [(False, 0.45, True), (False, 0.55, False), (True, 0.15, False)]
)
def test_a_trigger_over_the_image_may_move_a_given_innocent_model(
    made: bool, asr: float, fits: bool
) -> None:
    innocent = baseline("innocent", "reference", asr=asr).model_copy(update={"stand_in": made})
    baselines = [baseline("defended", "defended", asr=0.02), innocent]
    (_, assessed), _ = assess_innocents(baselines, Policy(), unfit={}, wide=True)
    assert (assessed.left_out is None) == fits


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="stand_ins"):
        bdaudit.AuditSettings(stand_ins=-1)
