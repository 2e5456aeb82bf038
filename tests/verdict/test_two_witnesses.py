"""Re-activation and relearning together: neither says "dormant" alone, and both do.

Figures are Blended's on the emoji family after FT-SAM (docs/benchmark-evidence.md): the
perturbation wakes the backdoor nearly as well without the trigger, and innocent models hardly.
"""

from __future__ import annotations

import pytest

from bdaudit.records import AuditRecord
from bdaudit.report.checks import list_checks
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, relearning_record

INNOCENT = {0.02: 0.02, 0.03: 0.04}


def asleep(
    *,
    without: float = 0.19,
    innocents: list[dict[float, float]] | None = None,
    gap: float | None = 0.24,
    reading: str = "dormant",
    **changes: object,
) -> AuditRecord:
    return audit_record(
        alone=0.0,
        defended={0.02: 0.28, 0.03: 0.60},
        no_trigger={0.02: without, 0.03: max(0.52, without)},
        delta_only=0.15,
        innocents=[INNOCENT] * 3 if innocents is None else innocents,
        relearning=None if gap is None else relearning_record(gap, outcome=reading),
        wide=True,
        **changes,
    )


def test_a_backdoor_that_wakes_without_its_trigger_too_is_dormant_where_it_is_remembered() -> None:
    verdict = judge(asleep(), Policy())
    assert verdict.outcome == "dormant"
    assert verdict.telling_eps["white"] == (0.02, 0.03)
    assert {c.eps for c in verdict.deciding} == {0.02}
    assert "28%" in verdict.why
    assert "(attack without the trigger: 19%)" in verdict.why
    assert "5 triggered images bring the trigger back as well: +24.0 points" in verdict.why


@pytest.mark.parametrize(
    ("change", "policy"),
    [
        ({"gap": None}, Policy()),
        ({"reading": "unknown"}, Policy()),
        ({"reading": "removed"}, Policy()),
        ({}, Policy(relearning="withhold")),
        ({}, Policy(relearning="warn")),
        # The trigger must add something: more than the attack without it, by however little.
        ({"without": 0.60}, Policy()),
        # Innocent models must be beaten by all that is asked of them otherwise.
        ({"innocents": [INNOCENT, INNOCENT, {0.02: 0.22, 0.03: 0.55}]}, Policy()),
        ({"innocents": [INNOCENT] * 2}, Policy()),
    ],
)
def test_one_witness_is_not_enough(change: dict[str, object], policy: Policy) -> None:
    verdict = judge(asleep(**change), policy)  # type: ignore[arg-type]
    assert verdict.outcome == "inconclusive"


def test_no_innocent_model_is_no_witness() -> None:
    """A local trigger needs none; but with none, nothing was held against innocent models."""
    local = asleep(innocents=[])
    local = local.model_copy(
        update={"trigger": local.trigger.model_copy(update={"footprint": 0.01})}
    )
    assert judge(local, Policy()).outcome == "inconclusive"


def test_innocent_models_made_here_do_not_accuse_of_a_wide_trigger() -> None:
    made = asleep(untriggered=[INNOCENT] * 3)
    assert judge(made, Policy()).outcome == "inconclusive"


def test_the_check_fails_as_the_verdict_does() -> None:
    record = asleep()
    judged = record.model_copy(update={"verdict": judge(record, Policy())})
    (check,) = [c for c in list_checks(judged) if c.name.startswith("the backdoor is not dormant")]
    assert check.status == "failed"
