"""Areas and curves against scikit-learn's, and the bootstrap against drawing originals in full."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from bdaudit.benchmarking import describe_case
from bdaudit.benchmarking.curves import area_under, draw_curves
from bdaudit.verdict import Policy
from tests.benchmarking.audits import audited


def cases(figures: list[tuple[str, str, float]]):
    """Cases of (truth, original, BEC)."""
    return [
        describe_case(audited(f"m{k}", truth, original=original, bec=bec), Policy())
        for k, (truth, original, bec) in enumerate(figures)
    ]


def test_area_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.random(60) < 0.4
    scores = np.round(random.normal(size=60) + truth, 1)  # rounded, so that some tie

    assert area_under(scores[truth], scores[~truth]) == pytest.approx(roc_auc_score(truth, scores))


def test_curve_of_bec():
    figures = [
        ("dormant", "a", 0.4),
        ("dormant", "b", 0.6),
        ("innocent", "a", 0.1),
        ("removed", "b", 0.5),
        ("innocent", "c", 0.5),
        ("active", "c", 0.9),  # the trigger alone shows these: no part of the curve
        ("unknown", "c", 0.9),
    ]

    curve = draw_curves(cases(figures))[0]

    false_alarms, caught, _ = roc_curve(
        [1, 1, 0, 0, 0], [0.4, 0.6, 0.1, 0.5, 0.5], drop_intermediate=False
    )
    assert (curve.score, curve.mode, curve.eps) == ("bec", None, None)
    assert (curve.n_positive, curve.n_negative) == (2, 3)
    assert curve.points == tuple(
        pytest.approx(point) for point in zip(false_alarms, caught, strict=True)
    )
    assert curve.auc == pytest.approx(4 / 6)


def test_figures_of_attacks_have_curves_by_eps_and_over_all():
    curves = draw_curves(cases([("dormant", "a", 0.4), ("innocent", "a", 0.3)]))

    lifts = {c.eps: c.auc for c in curves if c.score == "lift" and c.attack is None}
    assert lifts == {0.01: 1.0, 0.05: 1.0, None: 1.0}
    assert {c.attack for c in curves} == {None, "badnets"}


def test_one_kind_alone_has_no_area():
    curve = draw_curves(cases([("dormant", "a", 0.4)]))[0]

    assert curve.auc is None
    assert curve.reason == "no innocent or removed models with this figure"


def test_interval_draws_originals_not_models():
    random = np.random.default_rng(1)
    figures = []
    for original in "abcdefgh":
        shift = random.normal()  # what the models of one original have in common
        figures += [("dormant", original, shift + random.normal() + 1) for _ in range(3)]
        figures += [("innocent", original, shift + random.normal()) for _ in range(3)]

    curve = draw_curves(cases(figures))[0]

    areas = []
    for _ in range(500):
        drawn = random.choice(list("abcdefgh"), size=8)
        sample = [f for original in drawn for f in figures if f[1] == original]
        truth = [f[0] == "dormant" for f in sample]
        areas.append(roc_auc_score(truth, [f[2] for f in sample]))
    assert (curve.low, curve.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.05)


def test_two_originals_give_no_interval():
    figures = [("dormant", "a", 0.4), ("innocent", "b", 0.3)]

    assert draw_curves(cases(figures))[0].low is None
