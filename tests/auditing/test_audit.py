"""The whole audit on hand-set twins, whose answers are known before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.errors import ConfigError, DataError, ModelError, TriggerError
from bdaudit.foundation.progress import Progress
from bdaudit.measuring.attacking import Attacker
from bdaudit.models import Classifier
from bdaudit.records import AttackRun, AuditRecord, read_record, to_json
from bdaudit.triggers import AllToAll
from bdaudit.verdict import Policy, judge
from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_trigger,
)

TRIGGER = bdaudit.from_callable(twin_trigger, TARGET)
SETTINGS = bdaudit.AuditSettings(
    eps=(0.02, 0.05),
    passes=8,
    stand_ins=0,
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=100),
)


def another_innocent(seed: int) -> nn.Module:
    """An innocent twin whose weights differ a little from the other's."""
    net = innocent_twin()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.linear.weight += 0.002 * torch.randn(net.linear.weight.shape, generator=draw)
    return net


def audit(defended: nn.Module, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "trigger": TRIGGER,
        "reference": [another_innocent(1), another_innocent(2), another_innocent(3)],
        "settings": SETTINGS,
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("twin", "outcome"),
    [
        (dormant_twin, "dormant"),
        (removed_twin, "removed"),
        (innocent_twin, "removed"),
        (original_twin, "active"),
    ],
)
def test_every_twin_gets_the_verdict_it_was_made_for(
    twin: Callable[[], nn.Module], outcome: str
) -> None:
    record = audit(twin())
    assert record.verdict is not None
    assert record.verdict.outcome == outcome, record.verdict


def test_the_figures_of_the_dormant_twin_are_the_ones_its_weights_were_set_for() -> None:
    record = audit(dormant_twin())
    alone = record.baseline_of("defended")
    assert alone is not None
    assert alone.asr.value < 0.01
    assert alone.clean_acc.value == 1.0
    at = {r.eps: r for r in record.runs_of(role="defended", condition="trigger")}
    assert 0.4 < at[0.02].asr.value < 0.9
    assert at[0.05].asr.value == 1.0
    assert all(r.delta_only is not None and r.delta_only.value == 0.0 for r in at.values())
    assert all(r.delta_norm <= r.eps for r in record.runs)
    for condition in ("no_trigger", "wrong_target"):
        for run in record.runs_of(role="defended", condition=condition):
            assert run.asr.value < 0.1, run
    # One pixel is the whole trigger here, so noise has an even chance to help it; never more.
    for run in record.runs_of(role="defended", condition="noise"):
        assert run.asr.value <= at[run.eps].asr.value
    assert all(r.asr.value == 0.0 for r in record.runs_of(role="reference"))
    assert all(r.asr.value == 1.0 for r in record.runs_of(role="original"))
    assert record.barrier is not None
    assert record.barrier.points[0].asr.value == 1.0
    assert record.barrier.points[-1].asr.value < 0.01
    assert [step.status for step in record.steps] == ["done"] * len(record.steps)


def test_the_same_seed_gives_the_same_record() -> None:
    def timeless(record: AuditRecord) -> str:
        nothing = {"elapsed_s": 0.0, "peak_memory_bytes": None}
        relearning = record.relearning
        assert relearning is not None

        def run(r: AttackRun) -> AttackRun:
            return r.model_copy(update={"elapsed_s": 0.0})

        return to_json(
            record.model_copy(
                update={
                    "created": record.created.replace(year=2000, month=1, day=1, hour=0, minute=0),
                    "elapsed_s": 0.0,
                    "relearning": relearning.model_copy(update={"elapsed_s": 0.0}),
                    "runs": tuple(map(run, record.runs)),
                    "bec": tuple(b.model_copy(update={"elapsed_s": 0.0}) for b in record.bec),
                    "steps": tuple(s.model_copy(update=nothing) for s in record.steps),
                }
            )
        )

    def one(seed: int) -> AuditRecord:
        settings = replace(SETTINGS, compute=replace(SETTINGS.compute, seed=seed))
        return audit(dormant_twin(), settings=settings)

    def parts(record: AuditRecord) -> list[str]:
        # The digest over the content covers the time it was made at.
        told = ('"created"', '"content_sha256"')
        return [line for line in timeless(record).splitlines() if not line.strip().startswith(told)]

    assert parts(one(3)) == parts(one(3))
    deltas = [{r.delta_sha256 for r in one(seed).runs} for seed in (3, 4)]
    assert deltas[0] != deltas[1]


def test_the_inputs_are_left_as_they_were() -> None:
    defended, sample = dormant_twin().train(), twin_sample(400, seed=1)
    defended.requires_grad_(requires_grad=True)
    before = {name: value.clone() for name, value in defended.state_dict().items()}
    images = sample.images.clone()
    audit(defended, data=sample)
    assert defended.training
    assert all(p.requires_grad and p.grad is None for p in defended.parameters())
    assert all(torch.equal(before[k], v) for k, v in defended.state_dict().items())
    assert torch.equal(images, sample.images)


def test_equal_weights_are_flagged_and_never_pass() -> None:
    record = audit(removed_twin(), original=removed_twin())
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "same_weights" in {d.code for d in record.diagnostics}


def test_a_trigger_that_does_not_wake_the_original_gives_no_verdict() -> None:
    def nothing(images: Tensor) -> Tensor:
        return images.clone()

    record = audit(removed_twin(), trigger=bdaudit.from_callable(nothing, TARGET))
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "trigger_does_nothing_to_original" in {d.code for d in record.diagnostics}


def test_wrong_labels_are_flagged() -> None:
    sample = twin_sample(400, seed=1)
    shuffled = replace(sample, labels=(sample.labels + 1) % 4)
    record = audit(removed_twin(), data=shuffled)
    codes = {(d.code, d.subject) for d in record.diagnostics}
    assert ("clean_accuracy_near_chance", "defended") in codes
    assert record.verdict is not None
    assert record.verdict.outcome != "removed"


def test_a_reference_that_the_trigger_moves_is_left_out_and_alone_it_is_a_doubt() -> None:
    backdoored = original_twin()
    with torch.no_grad():
        backdoored.linear.weight *= 1.01
    record = audit(removed_twin(), reference=[backdoored])
    alone = record.baseline_of("reference")
    assert alone is not None
    assert "the trigger alone takes 100.0%" in (alone.left_out or "")
    codes = {d.code for d in record.diagnostics}
    assert {"reference_left_out", "trigger_moves_innocents"} <= codes
    assert not record.runs_of(role="reference")
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    among_others = audit(
        removed_twin(), reference=[backdoored, another_innocent(1), another_innocent(2)]
    )
    assert "trigger_moves_innocents" not in {d.code for d in among_others.diagnostics}
    assert among_others.verdict is not None
    assert among_others.verdict.outcome == "removed"


def test_a_local_trigger_can_be_judged_without_references_and_bec_says_why_it_is_missing() -> None:
    record = audit(dormant_twin(), reference=())
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert record.bec == ()
    assert "innocent model" in (record.bec_missing or "")


def test_a_reference_of_another_architecture_still_serves_as_null() -> None:
    class Other(nn.Module):
        """Reads the same blocks as the twins, with a layer name of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = innocent_twin()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images)
            return logits

    record = audit(dormant_twin(), reference=[Other()])
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert len(record.runs_of(role="reference")) == 2
    assert not record.bec or record.bec[0].value is None


def test_probabilities_are_taken_as_logs_and_change_nothing() -> None:
    class Softmax(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            probabilities: Tensor = self.inner(images).softmax(dim=1)
            return probabilities

    record = audit(Softmax(dormant_twin()), reference=())
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert any("log" in note for note in record.model_named("defended").notes)


def test_progress_rises_to_the_total_and_the_listener_can_stop_it() -> None:
    heard: list[Progress] = []
    audit(removed_twin(), listener=heard.append)
    positions = [event.done / event.total for event in heard if event.total > 1]
    assert positions == sorted(positions)
    assert positions[-1] <= 1.0
    assert positions[-1] > 0.9

    class Stop(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.step.startswith("white box"):
            raise Stop

    with pytest.raises(Stop):
        audit(removed_twin(), listener=stop)


def test_a_stored_run_is_not_made_again_and_gives_the_same_figures() -> None:
    store = bdaudit.MemoryStore()
    first = audit(dormant_twin(), store=store)
    size = len(store)
    second = audit(removed_twin(), store=store)
    # Only the defended model differs: trigger, no trigger and wrong target at two eps.
    assert len(store) == size + 6
    for role in ("original", "reference"):
        assert [r.asr for r in first.runs_of(role=role)] == [
            r.asr for r in second.runs_of(role=role)
        ]


@pytest.mark.parametrize(("objective", "n_new"), [("standard", 1), ("specific", 5)])
def test_other_references_change_the_runs_of_the_specific_objective_alone(
    objective: str, n_new: int
) -> None:
    store = bdaudit.MemoryStore()
    settings = replace(SETTINGS, eps=(0.02,), bec=False, objective=objective)
    audit(dormant_twin(), store=store, settings=settings)
    size = len(store)
    audit(dormant_twin(), store=store, settings=settings, reference=[another_innocent(9)])
    # One for the new reference; defended (three) and original look at it where they are specific.
    assert len(store) == size + n_new


def test_all_to_all_triggers_are_audited_with_a_target_for_each_image() -> None:
    record = audit(dormant_twin(), trigger=bdaudit.from_callable(twin_trigger, AllToAll()))
    assert record.trigger.target_label is None
    assert all(r.target_label is None for r in record.runs_of(condition="trigger"))


def test_a_record_on_disk_gives_the_same_verdict(tmp_path: Path) -> None:
    record = audit(dormant_twin())
    path = tmp_path / "result.json"
    path.write_text(to_json(record), encoding="utf-8")
    again = read_record(path)
    assert isinstance(again, AuditRecord)
    assert judge(again, Policy()) == record.verdict


def test_the_specific_objective_and_l2_run_through() -> None:
    settings = replace(SETTINGS, objective="specific", norm="l2", eps=(0.1, 0.3))
    record = audit(dormant_twin(), settings=settings)
    assert {r.norm for r in record.runs} == {"l2"}
    assert {r.objective for r in record.runs if r.condition != "noise"} == {"specific"}
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"trigger": bdaudit.from_callable(twin_trigger, 7)}, TriggerError, "out of range"),
        ({"target": 9}, TriggerError, "out of range"),
        (
            {"trigger": bdaudit.from_callable(twin_trigger, AllToAll()), "target": 1},
            TriggerError,
            "no single target",
        ),
        ({"data": (torch.rand(400, 1, 9, 9), torch.arange(400) % 4)}, ModelError, "9"),
        ({"data": (torch.rand(400, 1, 8, 8), torch.arange(400) % 6)}, DataError, "below 4"),
        ({"data": (torch.rand(400, 1, 8, 8), torch.zeros(400).long())}, DataError, "class"),
        ({"data": twin_sample(12, seed=1)}, DataError, "images"),
        ({"reference": [nn.Sequential(nn.Flatten(), nn.Linear(64, 5))]}, ModelError, "4 classes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(
    change: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        audit(removed_twin(), **change)


def test_nan_weights_are_refused() -> None:
    broken = removed_twin()
    with torch.no_grad():
        broken.linear.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"linear\.weight"):
        audit(broken)


@pytest.mark.parametrize(
    "settings",
    [
        {"eps": ()},
        {"eps": (0.0,)},
        {"eps": (8.0,)},
        {"eps": (0.02, 0.02)},
        {"norm": "l7"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        bdaudit.AuditSettings(**settings)  # type: ignore[arg-type]


def test_score_puts_the_dormant_twin_above_the_removed_one() -> None:
    def bec(defended: nn.Module) -> float:
        record = bdaudit.score(
            defended,
            original=original_twin(),
            data=twin_sample(200, seed=2),
            trigger=TRIGGER,
            reference=[another_innocent(1)],
            compute=bdaudit.ComputeSettings(device="cpu"),
        )
        assert record.bec[0].value is not None
        return record.bec[0].value

    assert bec(original_twin()) == pytest.approx(1.0)
    assert bec(innocent_twin()) == pytest.approx(0.0, abs=0.01)
    assert bec(dormant_twin()) > bec(removed_twin())


def test_reactivate_returns_a_delta_that_does_what_its_record_says() -> None:
    sample = twin_sample(400, seed=5)
    found = bdaudit.reactivate(
        dormant_twin(),
        data=sample,
        trigger=TRIGGER,
        config=bdaudit.WhiteboxConfig(eps=0.05, n_passes=8),
        compute=bdaudit.ComputeSettings(device="cpu"),
    )
    assert found.delta.shape == (1, 1, 8, 8)
    assert float(found.delta.abs().max()) <= 0.05
    others = twin_sample(100, seed=99)
    others = others.take((others.labels != TARGET).nonzero()[:, 0])
    woken = (twin_trigger(others.images) + found.delta).clamp(0, 1)
    assert bool((dormant_twin()(woken).argmax(1) == TARGET).all())
    assert bool((dormant_twin()(twin_trigger(others.images)).argmax(1) != TARGET).all())


def test_reactivate_finds_the_same_one_condition_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found() -> Any:
        return bdaudit.reactivate(
            dormant_twin(),
            data=twin_sample(400, seed=5),
            trigger=TRIGGER,
            config=bdaudit.WhiteboxConfig(eps=0.05, n_passes=8),
            compute=bdaudit.ComputeSettings(device="cpu"),
        )

    together = list[int]()
    attack_together = Attacker.attack_together

    def counted(self: Attacker, subject: Any, attacks: Any, inputs: Any) -> Any:
        together.append(len(attacks))
        return attack_together(self, subject, attacks, inputs)

    monkeypatch.setattr(Attacker, "attack_together", counted)
    at_once = found()
    assert together == [2]
    monkeypatch.setattr(Attacker, "most_together", lambda *_: 1)
    in_turn = found()
    assert together == [2]
    assert torch.allclose(at_once.delta, in_turn.delta, atol=1e-5)
    rates = [
        [(run.condition, run.asr.value) for run in one.record.runs] for one in (at_once, in_turn)
    ]
    assert rates[0] == rates[1]


def test_a_module_with_its_own_preprocessing_is_audited_as_it_is() -> None:
    wrapped = Classifier(dormant_twin(), mean=(0.0,), std=(1.0,))
    record = audit(wrapped, reference=())
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
