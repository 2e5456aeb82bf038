"""Audits without a trigger: one is recovered from the original first, and it is said everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.auditing import AuditSettings
from bdaudit.inversion import InversionConfig
from bdaudit.progress import Progress
from bdaudit.report.wording import not_proved
from bdaudit.results import AuditRecord
from bdaudit.standins import StandInConfig
from bdaudit.verdict import Policy, judge
from tests.auditing.test_stand_ins import TRAINED
from tests.auditing.test_stand_ins import original_twin as trainable_original_twin
from tests.auditing.test_stand_ins import removed_twin as trainable_removed_twin
from tests.inversion.nets import another_innocent
from tests.twins import dormant_twin, original_twin, removed_twin, twin_sample

INNOCENT = [another_innocent(k) for k in (1, 2, 3)]
SETTINGS = AuditSettings(
    stand_ins=0,
    eps=(0.02, 0.05),
    n_passes=8,
    measure_bec=False,
    inversion=InversionConfig(methods=("neural-cleanse",)),
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(n_craft=100),
)


def audit(defended: nn.Module, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "references": INNOCENT,
        "settings": SETTINGS,
    }
    return bdaudit.audit(defended, **(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("twin", "outcome"), [(dormant_twin, "active"), (removed_twin, "removed")])
def test_what_sleeps_is_not_passed_and_what_is_gone_is(
    twin: Callable[[], nn.Module], outcome: str
) -> None:
    """The recovered pixel is as bright as it can be, brighter than the true one: it needs no delta.

    A trigger that only just wakes the original (half as bright) would have said "removed" of both.
    """
    record = audit(twin())
    assert record.verdict is not None
    assert record.verdict.outcome == outcome
    assert record.verdict.why.endswith("The trigger is recovered from the original, not known.")
    assert record.trigger.recovered
    assert record.inversion is not None
    assert record.inversion.outcome == "found"
    assert record.steps[0].name == "inversion"
    assert any("recovered" in line for line in not_proved(record))


def test_a_clean_original_leaves_nothing_to_audit() -> None:
    record = audit(another_innocent(8), original=another_innocent(9))
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "no backdoor found to audit" in record.verdict.why
    assert record.verdict.release == "inconclusive"
    assert record.runs == ()
    assert not any("looks_backdoored" in d.code for d in record.diagnostics)
    assert [b.role for b in record.baselines[:2]] == ["defended", "original"]
    warned = judge(record, Policy(inconclusive="warn"))
    assert warned.outcome == "inconclusive"
    assert warned.release == "pass"


def test_the_plain_case_needs_neither_trigger_nor_reference() -> None:
    """Stand-ins are made first: the search is held against them, then the attacks are."""
    settings = replace(SETTINGS, stand_ins=None, stand_in=TRAINED, modes=("white",))
    record = audit(
        trainable_removed_twin(),
        original=trainable_original_twin(),
        references=[],
        settings=settings,
    )
    assert record.inversion is not None
    assert record.inversion.outcome == "found"
    names = ("stand-in 1", "stand-in 2", "stand-in 3")
    assert record.inversion.references == record.inversion.stand_ins == names
    assert "stand-ins for innocent models" in record.inversion.why
    assert [s.name for s in record.steps[:3]] == ["stand-ins", "inversion", "baselines"]
    assert [s.name for s in record.steps].count("stand-ins") == 1
    assert all("taught by defended" in record.model_named(name).notes[0] for name in names)
    assert all({r.condition for r in record.runs if r.model == n} >= {"trigger"} for n in names)
    assert record.verdict is not None
    assert record.verdict.outcome == "removed", record.verdict


def test_what_can_only_be_asked_teaches_no_stand_in() -> None:
    network = trainable_removed_twin()
    asked: list[int] = []

    def answer(images: Tensor) -> Tensor:
        asked.append(len(images))
        with torch.no_grad():
            return network(images)  # type: ignore[no-any-return]

    settings = replace(
        SETTINGS,
        stand_ins=1,
        stand_in=TRAINED,
        max_queries=100,
        warm=False,
        eps=(0.05,),
        controls=("no_trigger",),
    )
    before: list[int] = []

    def listen(event: Progress) -> None:
        if "taught by" in event.step or "Neural Cleanse" in event.step:
            before.append(sum(asked))

    record = audit(
        answer,  # type: ignore[arg-type]
        original=trainable_original_twin(),
        references=[],
        settings=settings,
        listener=listen,
    )
    assert record.inversion is not None
    assert record.inversion.stand_ins == ("stand-in 1",)
    assert "taught by original" in record.model_named("stand-in 1").notes[0]
    assert len(before) > 2
    assert max(before) == 0
    assert sum(asked) > 0


def test_a_stand_in_that_did_not_learn_the_task_is_shown_and_serves_nowhere() -> None:
    settings = replace(SETTINGS, stand_ins=1, stand_in=StandInConfig(n_images=64))
    record = audit(trainable_removed_twin(), original=trainable_original_twin(), settings=settings)
    assert record.inversion is not None
    assert record.inversion.stand_ins == ()
    assert record.inversion.references == ("reference 1", "reference 2", "reference 3")
    alone = record.baseline_of("stand-in 1")
    assert alone is not None
    assert "clean accuracy" in (alone.left_out or "")
    assert [d.code for d in record.diagnostics].count("stand_in_left_out") == 1
    assert record.verdict is not None
    assert record.verdict.outcome == "removed"


def test_without_innocent_models_a_recovered_trigger_carries_no_verdict() -> None:
    """The attack runs, for its figures, but an innocent original could look the same."""
    record = audit(removed_twin(), references=[])
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "not sure that there is a backdoor" in record.verdict.why
    assert record.runs


def test_removed_is_never_said_of_a_trigger_that_does_not_wake_the_original() -> None:
    """A recovered file given by hand meets the same rule as one found on the way."""
    found = bdaudit.invert(
        another_innocent(9),
        data=twin_sample(400, seed=1),
        references=INNOCENT,
        config=InversionConfig(methods=("universal",)),
        compute=bdaudit.ComputeSettings(device="cpu"),
        split=bdaudit.SplitSettings(n_craft=100),
    )
    record = audit(removed_twin(), original=another_innocent(9), trigger=found.triggers[0])
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "no working backdoor" in record.verdict.why
