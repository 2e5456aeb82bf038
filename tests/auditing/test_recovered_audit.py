"""Audits without a trigger: one is recovered from the original first, and it is said everywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

import bdaudit
from bdaudit.auditing import AuditSettings
from bdaudit.inversion import InversionConfig
from bdaudit.report.wording import not_proved
from bdaudit.results import AuditRecord
from bdaudit.verdict import Policy, judge
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
