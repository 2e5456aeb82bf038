"""What a verdict says to do next: three lines, by outcome and cause, with right figures."""

from __future__ import annotations

import re

import pytest

from bdaudit.records import AuditRecord
from bdaudit.verdict import Policy, judge
from tests.records import audit_record
from tests.verdict.made_up import made_up

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.9}
THREE = [QUIET, QUIET, QUIET]


def advice(record: AuditRecord, policy: Policy | None = None) -> tuple[str, ...]:
    return judge(record, policy or Policy()).advice


def test_three_lines_that_are_the_outcomes_own() -> None:
    removed = advice(audit_record(defended=QUIET, innocents=THREE))
    dormant = advice(audit_record(defended=LOUD, innocents=THREE))
    active = advice(audit_record(alone=0.9, defended=LOUD, innocents=THREE))
    assert len(removed) == len(dormant) == len(active) == 3
    assert "up to eps 0.05" in removed[0]
    assert "gate" in removed[1]
    assert "Audit again" in removed[2]
    assert "eps 0.02" in dormant[0]
    assert "bdaudit defend ORIGINAL --data DATA --trigger TRIGGER" in dormant[1]
    assert "works as it is" in active[0]
    assert dormant[1:] == active[1:]


def test_a_file_that_is_the_original_is_named_as_such() -> None:
    made = audit_record(alone=0.9, defended=LOUD, innocents=THREE)
    same = tuple(m.model_copy(update={"weights_sha256": "5" * 64}) for m in made.models)
    assert "same weights" in advice(made.model_copy(update={"models": same}))[0]


def test_a_removed_model_that_the_policy_holds_back_is_not_sent_to_the_gate() -> None:
    policy = Policy(allowed_sha256=("1" * 64,))
    lines = advice(audit_record(defended=QUIET, innocents=THREE), policy)
    assert any("Do not release it yet" in line for line in lines)
    assert not any("bdaudit gate" in line for line in lines)


def unclear(share: float, n: int) -> AuditRecord:
    return audit_record(
        defended={0.02: share}, innocents=[{0.02: 0.01}], n=n, delta_only=0.0, innocents_alone=0.0
    )


@pytest.mark.parametrize(("share", "outcome"), [(0.07, "removed"), (0.13, "dormant")])
def test_the_number_of_images_that_is_asked_for_decides(share: float, outcome: str) -> None:
    few = judge(unclear(share, 250), Policy())
    assert few.outcome == "inconclusive"
    asked = re.search(
        r"about ([\d,]+) clean images in --data \(now 500\), so that ([\d,]+) held-out ones are "
        r"not of the target class \(now 250\)",
        few.advice[0],
    )
    assert asked is not None, few.advice
    total, held_out = (int(text.replace(",", "")) for text in asked.groups())
    assert total >= 2 * held_out  # half of them are crafted on
    assert judge(unclear(share, held_out), Policy()).outcome == outcome
    assert judge(unclear(share, held_out // 4), Policy()).outcome == "inconclusive"


def test_images_are_not_asked_for_where_they_would_not_decide() -> None:
    at_the_limit = judge(unclear(0.08, 250), Policy())
    assert at_the_limit.outcome == "inconclusive"
    lines = judge(
        audit_record(defended={0.02: 0.08}, innocents=[{0.02: 0.0}], n=250, delta_only=0.0),
        Policy(),
    ).advice
    assert "hardly decide" in lines[0]
    assert not any("--data" in line for line in lines)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (audit_record(defended=QUIET, innocents=[QUIET], wide=True), "2 more innocent models"),
        (audit_record(defended=QUIET, innocents=THREE, original=0.2), "at least 50%"),
        (audit_record(defended=QUIET, innocents=THREE, original_run=0.2), "--passes"),
        (audit_record(defended={}, innocents=[]), "--mode white"),
        (
            audit_record(defended={0.04: 0.9}, innocents=[{0.04: 0.9}], no_trigger={0.04: 0.9}),
            "--eps 0.01,0.02",
        ),
    ],
)
def test_what_stands_in_the_way_is_answered_by_an_option(record: AuditRecord, said: str) -> None:
    verdict = judge(record, Policy())
    assert verdict.outcome == "inconclusive"
    assert any(said in line for line in verdict.advice), verdict.advice


@pytest.mark.parametrize("seed", range(0, 300, 3))
def test_whatever_the_record_there_are_three_different_lines(seed: int) -> None:
    lines = judge(*made_up(seed)).advice
    assert len(set(lines)) == 3
    assert not any(re.search(r"\bnan\b|\binf\b|None", line) for line in lines)
