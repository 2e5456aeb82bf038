"""Audits without a trigger: one is recovered from the original first, and it is said everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.auditing import AuditSettings
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress
from bdaudit.inversion import InversionConfig
from bdaudit.records import AuditRecord
from bdaudit.relatives.standins import StandInConfig
from bdaudit.report.wording import not_proved
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
    passes=8,
    bec=False,
    relearn=None,
    inversion=InversionConfig(methods=("neural-cleanse",)),
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=100),
)


def audit(defended: nn.Module, **changes: object) -> AuditRecord:
    arguments: dict[str, object] = {
        "original": original_twin(),
        "data": twin_sample(400, seed=1),
        "reference": INNOCENT,
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
    """The search is held against what labels taught, the attacks against the defended's students.

    Nothing of a model that may be backdoored may come along into the search.
    """
    settings = replace(SETTINGS, stand_ins=None, stand_in=TRAINED)
    record = audit(
        trainable_removed_twin(),
        original=trainable_original_twin(),
        reference=[],
        settings=settings,
    )
    inversion = record.inversion
    assert inversion is not None
    assert inversion.outcome == "found"
    names = tuple(f"label stand-in {k}" for k in (1, 2, 3))
    assert inversion.references == tuple(m.name for m in inversion.made) == names
    assert all("taught by the labels of 100" in m.notes[0] for m in inversion.made)
    assert "stand-ins for innocent models" in inversion.why
    for name in ("stand-in 1", "stand-in 2", "stand-in 3"):
        assert "taught by defended" in record.model_named(name).notes[0]
        assert {r.condition for r in record.runs if r.model == name} == {"trigger", "no_trigger"}
    assert record.verdict is not None
    assert record.verdict.outcome == "removed", record.verdict


def test_a_search_asks_nothing_of_what_can_only_be_asked() -> None:
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
        cold=True,
        eps=(0.05,),
        controls=("no_trigger",),
    )
    before: list[int] = []

    def listen(event: Progress) -> None:
        if "taught by the labels" in event.step or "Neural Cleanse" in event.step:
            before.append(sum(asked))

    record = audit(
        answer,  # type: ignore[arg-type]
        original=trainable_original_twin(),
        reference=[],
        settings=settings,
        listener=listen,
    )
    assert record.inversion is not None
    assert record.inversion.references == ("label stand-in 1",)
    assert len(before) > 2
    assert max(before) == 0
    assert sum(asked) > 0


def test_a_stand_in_that_did_not_learn_the_task_is_named_and_serves_nowhere() -> None:
    settings = replace(SETTINGS, stand_ins=1, stand_in=StandInConfig(n_images=64))
    record = audit(trainable_removed_twin(), original=trainable_original_twin(), settings=settings)
    inversion = record.inversion
    assert inversion is not None
    assert inversion.references == ("reference 1", "reference 2", "reference 3")
    assert [m.name for m in inversion.made] == ["label stand-in 1"]
    assert "points below the original's" in inversion.left_out["label stand-in 1"]
    assert record.verdict is not None
    assert record.verdict.outcome == "removed"


def test_without_innocent_models_a_recovered_trigger_carries_no_verdict() -> None:
    """The attack runs, for its figures, but an innocent original could look the same."""
    record = audit(removed_twin(), reference=[])
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "uncertain whether there is a backdoor" in record.verdict.why
    assert record.runs


def test_removed_is_never_said_of_a_trigger_that_does_not_wake_the_original() -> None:
    """A recovered file given by hand meets the same rule as one found on the way."""
    found = bdaudit.invert(
        another_innocent(9),
        data=twin_sample(400, seed=1),
        reference=INNOCENT,
        config=InversionConfig(methods=("universal",)),
        compute=bdaudit.ComputeSettings(device="cpu"),
        split=bdaudit.SplitSettings(craft=100),
    )
    record = audit(removed_twin(), original=another_innocent(9), trigger=found.triggers[0])
    assert record.verdict is not None
    assert record.verdict.outcome == "inconclusive"
    assert "no working backdoor" in record.verdict.why


def test_a_killed_audit_does_not_search_again(tmp_path: Path) -> None:
    whole = audit(dormant_twin())

    class KilledError(Exception):
        pass

    def dies(event: Progress) -> None:
        if "white box on reference" in event.step:
            raise KilledError

    with pytest.raises(KilledError):
        audit(
            dormant_twin(), store=bdaudit.FolderStore(tmp_path / "s", resume=False), listener=dies
        )
    heard: list[str] = []
    resumed = audit(
        dormant_twin(),
        store=bdaudit.FolderStore(tmp_path / "s", resume=True),
        listener=lambda event: heard.append(f"{event.step} {event.note}"),
    )
    assert any("kept from an earlier run" in line for line in heard)
    assert any("already measured" in line for line in heard)
    assert not any("neural cleanse" in line.lower() for line in heard)
    assert resumed.verdict == whole.verdict
    assert resumed.trigger.sha256 == whole.trigger.sha256
    assert [r.delta_sha256 for r in resumed.runs] == [r.delta_sha256 for r in whole.runs]
    with pytest.raises(ConfigError, match="cannot resume"):
        audit(removed_twin(), store=bdaudit.FolderStore(tmp_path / "s", resume=True))
