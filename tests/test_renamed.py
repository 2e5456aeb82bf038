"""Old names of settings work for one release, warn, and mean the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import bdaudit
from bdaudit.cases.recorded import as_recorded, from_recorded
from bdaudit.foundation.renamed import renamed


@pytest.mark.parametrize(
    ("kind", "old", "value", "new", "meaning"),
    [
        (bdaudit.AuditSettings, "n_passes", 5, "passes", 5),
        (bdaudit.AuditSettings, "modes", ("query",), "mode", ("query",)),
        (bdaudit.AuditSettings, "measure_bec", False, "bec", False),
        (bdaudit.AuditSettings, "warm", False, "cold", True),
        (bdaudit.SplitSettings, "n_craft", 5, "craft", 5),
        (bdaudit.SplitSettings, "n_held_out", 5, "held_out", 5),
        (bdaudit.ComputeSettings, "bf16", True, "precision", "bfloat16"),
        (bdaudit.ComputeSettings, "bf16", False, "precision", "float32"),
        (bdaudit.BlackBoxOptions, "order", "NHWC", "layout", "NHWC"),
        (bdaudit.BlackBoxOptions, "batch_size", 8, "request_size", 8),
        (bdaudit.TransportSettings, "timeout_s", 2.0, "timeout", 2.0),
        (bdaudit.TransportSettings, "max_retries", 0, "retries", 0),
        (bdaudit.DefendSettings, "n_defender", 9, "defender_images", 9),
        (
            bdaudit.DefendSettings,
            "method_settings",
            {"anp": {"threshold": 0.3}},
            "settings",
            {"anp": {"threshold": 0.3}},
        ),
    ],
)
def test_an_old_name_warns_and_means_the_new_one(
    kind: Callable[..., Any], old: str, value: object, new: str, meaning: object
) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        built = kind(**{old: value})
    assert built == kind(**{new: meaning})
    with pytest.warns(DeprecationWarning, match=f"{old} is now called {new}"):
        assert getattr(built, old) == value


def test_an_old_name_wins_over_the_value_that_replace_hands_on() -> None:
    settings = bdaudit.AuditSettings(passes=3)
    with pytest.warns(DeprecationWarning, match="n_passes is now called passes"):
        assert replace(settings, n_passes=9).passes == 9  # type: ignore[call-arg]
    assert replace(settings, passes=9).passes == 9


def test_a_function_is_called_by_an_old_name() -> None:
    @renamed({"warm": "cold"}, through={"warm": lambda value: not value})
    def start(*, cold: bool = False) -> bool:
        return cold

    with pytest.warns(DeprecationWarning, match="start: warm is now called cold"):
        assert start(warm=False)  # type: ignore[call-arg]
    assert not start()


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        (bdaudit.audit, ("reference", "surrogate", "target")),
        (bdaudit.score, ("reference", "target")),
        (bdaudit.reactivate, ("reference", "surrogate", "target", "cold")),
        (bdaudit.relearn, ("reference", "target")),
        (bdaudit.invert, ("reference", "target")),
        (bdaudit.defend, ("reference", "target")),
    ],
)
def test_verbs_call_inputs_as_the_command_line_does(
    verb: Callable[..., Any], names: tuple[str, ...]
) -> None:
    old = {
        "reference": "references",
        "surrogate": "surrogates",
        "target": "target_label",
        "cold": "warm",
    }
    assert set(names) <= inspect.signature(verb).parameters.keys()
    for name in names:
        # The warning comes first, and then the other arguments are missing.
        with (
            pytest.warns(DeprecationWarning, match=f"{old[name]} is now called {name}"),
            pytest.raises(TypeError, match="missing"),
        ):
            verb(**{old[name]: ()})


def test_a_record_keeps_its_names_and_is_read_by_them() -> None:
    settings = bdaudit.AuditSettings(
        passes=5,
        mode=("white",),
        bec=False,
        cold=True,
        compute=bdaudit.ComputeSettings(precision="bfloat16"),
        split=bdaudit.SplitSettings(craft=7),
    )
    recorded = as_recorded(settings)
    assert recorded["n_passes"] == 5
    assert recorded["modes"] == ("white",)
    assert recorded["measure_bec"] is False
    assert recorded["warm"] is False
    assert recorded["split"]["n_craft"] == 7
    assert recorded["compute"]["precision"] == "bfloat16"
    read = from_recorded("AuditSettings", recorded)
    assert (read["passes"], read["mode"], read["bec"], read["cold"]) == (5, ("white",), False, True)
    assert read["split"] == {"craft": 7, "held_out": None}


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_a_record_from_before_the_precision_is_read(bf16: bool, precision: str) -> None:
    old = {"n_passes": 4, "compute": {"device": "cpu", "seed": 0, "batch_size": 256, "bf16": bf16}}
    read = from_recorded("AuditSettings", old)
    assert read["compute"] == {
        "device": "cpu",
        "seed": 0,
        "batch_size": 256,
        "precision": precision,
    }
