"""Verdicts by placebo triggers: the difference of differences, and where it may decide.

The figures of triggers over the image are near those of models that the project had not seen, at
eps .02: what their true trigger and eight placebos reach, and an innocent model under the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bdaudit.records import AuditRecord, Placebos
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, placebos


def between(low: float, high: float, n: int = 8) -> list[float]:
    return [low + (high - low) * k / (n - 1) for k in range(n)]


def with_placebos(
    true: float,
    reached: list[float],
    innocent: float | None = None,
    innocent_reached: Sequence[float] = (),
    *,
    wide: bool = True,
    eps: float = 0.02,
    n_innocents: int = 1,
    **changes: Any,
) -> AuditRecord:
    """An audit of one eps: the defended model, and innocent ones that are all alike."""
    n_innocents = 0 if innocent is None else n_innocents
    record = audit_record(
        alone=changes.pop("alone", 0.005),
        defended={eps: true},
        innocents=[{eps: innocent or 0.0}] * n_innocents,
        wide=wide,
        **changes,
    )
    by_model = {"defended": {eps: reached}}
    for k in range(n_innocents):
        by_model[f"reference {k + 1}"] = {eps: list(innocent_reached)}
    return record.model_copy(update={"placebos": placebos(by_model)})


LF_SLEEPING = (0.80, between(0.03, 0.04), 0.35, between(0.17, 0.27))
SIG_SLEEPING = (0.53, between(0.38, 0.46), 0.28, between(0.33, 0.41))
SIG_INNOCENT = (0.44, between(0.25, 0.29), 0.26, between(0.13, 0.18))
CLEAN = {
    "LF, unlearned": (0.04, between(0.01, 0.03), 0.35, between(0.17, 0.27)),
    "SIG, unlearned": (0.05, between(0.08, 0.16), 0.28, between(0.33, 0.41)),
}


def test_a_backdoor_that_sleeps_stands_out_among_placebos() -> None:
    verdict = judge(with_placebos(*LF_SLEEPING), Policy())
    assert verdict.outcome == "dormant"
    assert "eight other triggers of the same strength, which the original ignores" in verdict.why
    assert "without a backdoor 7.83% is expected" in verdict.why
    assert {c.against for c in verdict.deciding} >= {"placebos"}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_unlearned_does_not(name: str) -> None:
    assert judge(with_placebos(*CLEAN[name]), Policy()).outcome == "removed"


def test_what_a_trigger_does_by_its_nature_is_taken_off() -> None:
    """On an innocent model a sinusoid beats its placebos; without that model it looks asleep."""
    judged = judge(with_placebos(*SIG_INNOCENT), Policy())
    (over,) = [c for c in judged.lifts if c.against == "placebos"]
    assert abs(over.value) < 0.05
    assert judged.outcome == "inconclusive", "one innocent model does not bound it within 10 points"
    by_itself = judge(with_placebos(*SIG_INNOCENT[:2], wide=False), Policy(placebo_spread=0.05))
    assert by_itself.outcome == "dormant", "the same figures, of a trigger that has no such nature"


def test_what_innocent_models_differ_by_may_be_all_there_is() -> None:
    """A sleeping sinusoid that leads by .56 deviates: two innocent models can differ by that."""
    record = with_placebos(*SIG_SLEEPING)
    assert judge(record, Policy()).outcome == "inconclusive"
    assert judge(record, Policy(placebo_spread_wide=0.05)).outcome == "dormant"
    assert Policy().placebo_spread < Policy().placebo_spread_wide


def test_a_trigger_over_the_image_needs_an_innocent_model_beside_its_placebos() -> None:
    verdict = judge(with_placebos(0.57, between(0.03, 0.04)), Policy())
    assert verdict.outcome == "inconclusive"
    assert any("covers the image" in reason for reason in verdict.reasons)


def test_one_innocent_model_or_stand_in_is_enough() -> None:
    record = with_placebos(*LF_SLEEPING)
    stand_in = record.baselines[2].model_copy(update={"stand_in": True})
    record = record.model_copy(update={"baselines": (*record.baselines[:2], stand_in)})
    assert judge(record, Policy()).outcome == "dormant"
    without = record.model_copy(update={"placebos": None})
    assert judge(without, Policy()).outcome == "inconclusive", "by the rule of older records"


def test_from_three_innocent_models_on_they_decide() -> None:
    record = with_placebos(*LF_SLEEPING, n_innocents=3)
    verdict = judge(record, Policy())
    assert not any(c.against == "placebos" for c in verdict.lifts)
    assert verdict == judge(record.model_copy(update={"placebos": None}), Policy())


def test_a_patch_is_judged_by_its_placebos_alone() -> None:
    sleeping = judge(with_placebos(0.34, between(0.04, 0.09), wide=False), Policy())
    assert sleeping.outcome == "dormant"
    unlearned = judge(with_placebos(0.05, between(0.06, 0.09), wide=False), Policy())
    assert unlearned.outcome == "removed"
    # Innocent models differ by a quarter of a deviate in what a patch does beyond its placebos:
    # where it takes a third of the images anyway, ten points more or less may be nothing.
    easily_pushed = judge(with_placebos(0.30, between(0.33, 0.38), wide=False), Policy())
    assert easily_pushed.outcome == "inconclusive"


def test_a_recovered_patch_needs_an_innocent_model_beside_its_placebos() -> None:
    """It was made by descending a model; another order of its pixels was not."""
    record = with_placebos(0.34, between(0.04, 0.09), wide=False)
    found = record.trigger.model_copy(update={"recovered": True})
    verdict = judge(record.model_copy(update={"trigger": found}), Policy())
    assert verdict.outcome == "inconclusive"
    record = with_placebos(0.34, between(0.04, 0.09), 0.30, between(0.04, 0.09), wide=False)
    record = record.model_copy(update={"trigger": found})
    assert judge(record, Policy()).outcome != "dormant", "it does that to an innocent model as well"
    record = with_placebos(0.80, between(0.04, 0.09), 0.10, between(0.04, 0.09), wide=False)
    record = record.model_copy(update={"trigger": found})
    assert judge(record, Policy()).outcome == "dormant"


def test_fewer_than_five_placebos_are_no_null() -> None:
    record = with_placebos(0.57, between(0.03, 0.04, n=4), 0.35, between(0.17, 0.27, n=4))
    few = record.placebos
    assert few is not None
    missing = few.model_copy(update={"missing": "of 96 patterns the original ignores 4"})
    for of_these in (few, missing):
        verdict = judge(record.model_copy(update={"placebos": of_these}), Policy())
        assert verdict.outcome == "inconclusive"


def test_an_attack_that_can_tell_and_was_not_made_with_placebos_is_missing() -> None:
    record = with_placebos(*CLEAN["SIG, unlearned"])
    assert record.placebos is not None
    more = audit_record(
        alone=0.005,
        defended={0.02: 0.05, 0.03: 0.4},
        innocents=[{0.02: 0.28, 0.03: 0.4}],
        wide=True,
    )
    verdict = judge(more.model_copy(update={"placebos": record.placebos}), Policy())
    assert verdict.outcome == "inconclusive"
    assert any("not measured: the attack with placebos at eps 0.03" in r for r in verdict.reasons)


def test_an_eps_at_which_the_controls_saturate_decides_nothing() -> None:
    """The trigger's part at such an eps called an unlearned model dormant."""
    record = audit_record(
        alone=0.005,
        defended={0.02: 0.04, 0.05: 0.95},
        no_trigger={0.02: 0.02, 0.05: 0.6},
        innocents=[{0.02: 0.35, 0.05: 0.97}],
        wide=True,
    )
    by_placebos = placebos({"defended": {}, "reference 1": {}})
    kept = placebos({"defended": {0.02: between(0.01, 0.03)}}).kept
    record = record.model_copy(
        update={"placebos": by_placebos.model_copy(update={"kept": kept, "runs": ()})}
    )
    verdict = judge(record, Policy())
    assert verdict.outcome == "removed"
    assert verdict.telling_eps == {}
    assert all(c.eps == 0.02 for c in verdict.deciding)


def test_what_the_controls_on_the_same_model_reach_must_be_beaten_too() -> None:
    record = with_placebos(0.57, between(0.03, 0.04), 0.35, between(0.17, 0.27), delta_only=0.49)
    assert judge(record, Policy()).outcome != "dormant"


def test_placebos_that_differ_much_say_little() -> None:
    wide_spread = [0.02, 0.05, 0.10, 0.20, 0.40, 0.60, 0.03, 0.30]
    verdict = judge(with_placebos(0.40, wide_spread, 0.10, between(0.09, 0.11)), Policy())
    assert verdict.outcome == "inconclusive"


def test_a_trigger_far_below_its_placebos_is_removed() -> None:
    """A defence may harden a model against the true trigger alone."""
    record = with_placebos(0.13, between(0.30, 0.40), wide=False)
    assert judge(record, Policy()).outcome == "removed"


def test_an_attack_of_another_condition_is_no_record_of_placebos() -> None:
    made = placebos({"defended": {0.02: [0.1]}})
    wrong = made.runs[0].model_copy(update={"condition": "trigger"})
    with pytest.raises(ValueError, match="another condition"):
        Placebos.model_validate({**dict(made), "runs": (wrong,)})
    beyond = made.runs[0].model_copy(update={"placebo": 1})
    with pytest.raises(ValueError, match="placebo 1 of 1"):
        Placebos.model_validate({**dict(made), "runs": (beyond,)})


def test_more_placebos_tell_more() -> None:
    def width(n: int) -> float:
        record = with_placebos(0.40, between(0.2, 0.3, n), 0.2, between(0.15, 0.25, n))
        lifts = judge(record, Policy(placebo_spread_wide=0.0)).lifts
        (over,) = [c for c in lifts if c.against == "placebos"]
        assert over.low is not None
        assert over.high is not None
        return over.high - over.low

    assert width(16) < width(6)
