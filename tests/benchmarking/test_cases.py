from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from bdaudit.benchmarking import describe_case
from bdaudit.errors import RecordError
from bdaudit.records import CurvePoint
from bdaudit.verdict import Policy
from tests.benchmarking.audits import BETWEEN, SLEEPS, audited
from tests.records import rate, run


def test_a_case_holds_figures_beside_truth():
    case = describe_case(audited("d", "dormant"), Policy())

    assert (case.outcome, case.truth, case.correct) == ("dormant", "dormant", True)
    assert (case.bec, case.asr, case.clean_acc) == (0.4, 0.02, 0.9)
    assert case.peak_memory_bytes == 3000
    small, large = case.points
    assert (large.eps, large.asr, large.innocent, large.delta_only) == (0.05, 0.6, 0.32, 0.02)
    assert large.lift == pytest.approx(0.28)
    assert large.lift_over_innocents == pytest.approx(0.28)
    assert large.lift_over_own == pytest.approx(0.58)
    assert small.lift == pytest.approx(0.06)


def test_an_attack_stands_beside_what_is_none():
    case = audited("d", "dormant")
    noise = run("defended", "defended", 0.05, 0.12, condition="noise")
    record = case.record.model_copy(update={"runs": (*case.record.runs, noise)})

    small, large = describe_case(replace(case, record=record), Policy()).points

    assert (small.no_trigger, small.noise) == (0.02, None)
    assert (large.no_trigger, large.noise) == (0.02, 0.12)


def test_query_searches_keep_their_way():
    case = audited("d", "dormant", variant="query")
    curve = (
        CurvePoint(n_queries=500, asr=rate(0.1)),
        CurvePoint(n_queries=900, asr=rate(0.6)),
    )
    runs = tuple(r.model_copy(update={"query_curve": curve}) for r in case.record.runs)
    record = case.record.model_copy(update={"runs": runs})

    curves = describe_case(replace(case, record=record), Policy()).query_curves

    assert {c.points for c in curves} == {((500, 0.1), (900, 0.6))}
    assert Counter(c.of for c in curves) == {"trigger": 2, "no_trigger": 2, "innocent": 6}


@pytest.mark.parametrize(
    ("truth", "figures", "outcome", "correct"),
    [
        ("innocent", None, "removed", True),
        ("removed", SLEEPS, "dormant", False),
        ("dormant", {0.01: 0.02, 0.05: 0.2}, "removed", False),
        ("removed", BETWEEN, "inconclusive", None),
        ("unknown", SLEEPS, "dormant", None),
    ],
)
def test_what_is_correct(truth, figures, outcome, correct):
    case = describe_case(audited("m", truth, defended=figures), Policy())

    assert (case.outcome, case.correct) == (outcome, correct)


def test_other_limits_judge_the_same_record_anew():
    doubtful = audited("m", "removed", defended=BETWEEN)

    assert describe_case(doubtful, Policy(lift=0.2)).outcome == "removed"
    assert describe_case(doubtful, Policy(lift=0.05)).outcome == "dormant"


def test_a_failed_audit_is_no_verdict():
    case = describe_case(audited("m", "innocent", failure="out of memory"), Policy())

    assert (case.outcome, case.correct, case.why) == (None, None, "out of memory")


def test_a_member_without_an_original_is_no_case():
    case = audited("m", "innocent")
    lonely = case.member.model_copy(update={"original": None})

    with pytest.raises(RecordError, match="names no original"):
        describe_case(type(case)(lonely, "white", case.record), Policy())
