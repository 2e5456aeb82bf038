from __future__ import annotations

import pytest

from bdaudit.benchmarking import summarise
from bdaudit.verdict import Policy
from tests.benchmarking.audits import BETWEEN, SLEEPS, audited

FAMILY = [
    audited("d1", "dormant"),
    audited("d2", "dormant", original="b", defended={0.01: 0.02, 0.05: 0.2}),
    audited("r1", "removed", bec=0.7),
    audited("r2", "removed", original="b", defended=BETWEEN),
    audited("i1", "innocent", bec=0.0),
    audited("i2", "innocent", original="b", bec=0.1, failure="out of memory"),
    audited("x1", "active", alone=0.9),
]


def test_verdicts_are_counted_by_truth():
    found = summarise(FAMILY, Policy()).confusion["white"]

    assert found.counts["dormant"] == {
        "removed": 1, "dormant": 1, "active": 0, "inconclusive": 0
    }  # fmt: skip
    assert found.counts["active"]["active"] == 1
    assert "unknown" not in found.counts
    assert (found.sleeping_called_removed.successes, found.sleeping_called_removed.total) == (1, 2)
    assert found.innocent_called_backdoored.successes == 0
    # A failed audit must not read as a pass.
    assert (found.inconclusive.successes, found.inconclusive.total) == (2, 7)


def test_alike_reasons_are_counted_together():
    audits = [
        audited(f"r{k}", "removed", defended={0.01: 0.05, 0.05: share})
        for k, share in enumerate((0.42, 0.425))
    ]

    ((reason, n),) = summarise(audits, Policy()).confusion["white"].reasons
    assert n == 2
    assert reason.startswith("at eps # the lift over reference # is #, between # and #")


def test_every_wrong_verdict_is_written_up():
    (miss,) = summarise(FAMILY, Policy()).misses

    assert (miss.case, miss.truth, miss.outcome) == ("d2--white", "dormant", "removed")
    assert "white eps 0.05: 0.200, lift -0.120" in miss.evidence


def test_the_naive_recipes_decide_the_same_models():
    recipes = {r.name: r for r in summarise(FAMILY, Policy()).recipes}

    verdict = recipes["verdict of bdaudit"]
    assert (verdict.caught.value, verdict.false_alarms.value) == (0.5, 0.0)
    assert verdict.undecided.value == pytest.approx(1 / 5)
    bec = recipes["BEC above 0.5"]
    assert (bec.caught.value, bec.false_alarms.successes) == (0.0, 1)
    best = recipes["re-activated ASR at eps 0.05 above the best threshold"]
    assert best.threshold == pytest.approx((0.42 + 0.6) / 2)
    assert (best.caught.value, best.false_alarms.value) == (0.5, 0.0)


def test_ways_of_auditing_are_held_together():
    others = [
        audited("d1", "dormant", variant="query", defended={0.01: 0.02, 0.05: 0.2}),
        audited("r1", "removed", variant="query"),
    ]

    (agreement,) = summarise([*FAMILY, *others], Policy()).agreements

    assert agreement.name == "queries against white box"
    assert agreement.table["dormant"]["removed"] == 1
    assert (agreement.same.successes, agreement.same.total) == (1, 2)
    assert agreement.opposed == ("d1",)


def test_curves_take_the_attacks_of_all_modes():
    others = [audited(a.member.name, a.member.truth, variant="query") for a in FAMILY[:3]]
    changed = [
        type(a)(
            a.member,
            a.variant,
            a.record.model_copy(
                update={
                    "runs": tuple(r.model_copy(update={"mode": "query"}) for r in a.record.runs)
                }
            ),
        )
        for a in others
    ]

    curves = summarise([*FAMILY, *changed], Policy()).curves

    assert {c.mode for c in curves} == {None, "white", "query"}


def test_costs_of_steps_alike_are_added_up():
    costs = {c.step: c for c in summarise(FAMILY, Policy()).costs}

    assert costs["baselines"].n == 6
    assert costs["baselines"].total_s == 12.0
    assert costs["re-activation (white)"].peak_memory_bytes == 3000


def test_nothing_known_is_no_error():
    found = summarise([audited("m", "unknown", defended=SLEEPS)], Policy())

    assert found.confusion["white"].innocent_called_backdoored is None
    assert all(curve.auc is None for curve in found.curves)
    assert found.recipes[0].caught is None
