from __future__ import annotations

from functools import cache

import pytest

from bdaudit.benchmarking import SearchSpace, calibrate, summarise
from bdaudit.benchmarking.calibration import cost_of, split_originals
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import finish
from bdaudit.verdict import Policy
from tests.benchmarking.audits import BETWEEN, audited


@cache
def family(n_attacks: int = 3):
    """Two originals an attack; removed models whose lift is .10, sleeping ones with .28."""
    return [
        member
        for attack in ("badnets", "blended", "sig", "wanet")[:n_attacks]
        for number in (1, 2)
        for member in (
            audited(
                f"{attack}-{number}-d", "dormant", original=f"{attack}-{number}", attack=attack
            ),
            audited(
                f"{attack}-{number}-r",
                "removed",
                original=f"{attack}-{number}",
                attack=attack,
                defended=BETWEEN,
            ),
        )
    ]


def test_limits_move_where_the_models_ask_for_it():
    found = finish(calibrate(family()))

    # A lift of .10 is surely below .12, and the trigger's contribution of as much surely below .15.
    assert found.policy["lift"] == 0.15
    assert found.policy["saturation"] == Policy().saturation
    assert found.n_tried == 40
    assert found.reported_on.inconclusive.successes == 0
    assert found.default_on.inconclusive.successes == 3
    assert found.chosen_on.sleeping_called_removed.successes == 0


def test_limits_stay_where_all_do_equally_well():
    audits = [audited(f"m{o}", "dormant", original=o) for o in "ab"]

    found = finish(calibrate(audits))

    assert found.policy == found.default == Policy().model_dump(mode="json")
    assert found.n_best > 1


def test_no_sibling_leaks_and_attacks_are_spread():
    for seed in range(5):
        one, two = split_originals(family(4), seed=seed)

        assert not one & two
        assert {name.split("-")[0] for name in one} == {name.split("-")[0] for name in two}


def test_the_split_follows_the_seed():
    splits = {frozenset(split_originals(family(4), seed=seed)[0]) for seed in range(8)}

    assert len(splits) > 1


def test_one_original_cannot_be_split():
    with pytest.raises(ConfigError, match="two originals or more, got 1"):
        finish(calibrate([audited("d", "dormant"), audited("r", "removed")]))


def test_errors_cost_more_than_doubt():
    assert cost_of([("dormant", "removed")]) == cost_of([("innocent", "dormant")]) == 20
    assert cost_of([("dormant", "inconclusive"), ("innocent", None)]) == 2
    assert cost_of([("dormant", "dormant"), ("dormant", "active"), ("innocent", "removed")]) == 0


def test_recipes_get_their_thresholds_from_the_other_half():
    audits = family()
    calibration = finish(calibrate(audits))

    found = summarise(audits, Policy.model_validate(calibration.policy), calibration=calibration)

    assert {case.half for case in found.cases} == {"calibration", "report"}
    assert {recipe.cases for recipe in found.recipes} == {"report"}
    assert found.recipes[0].caught.total == 3


def test_an_empty_search_is_refused():
    with pytest.raises(ConfigError, match="lift: expected one value"):
        SearchSpace(lift=())
