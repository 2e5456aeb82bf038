"""What attacks show of themselves when they are held against one another."""

from __future__ import annotations

from bdaudit.measuring.baselines import check_runs
from bdaudit.records import AttackRun
from tests.records import run


def codes(*runs: AttackRun) -> list[str]:
    return [d.code for d in check_runs(runs)]


def test_a_trigger_that_holds_off_what_its_own_perturbation_does_is_named() -> None:
    held_off = run("defended", "defended", 0.05, 0.10, delta_only=0.44)
    (found,) = check_runs([held_off, run("innocent", "reference", 0.05, 0.3, delta_only=0.3)])
    assert found.code == "trigger_suppresses"
    assert "44.0% of images without the trigger" in found.message


def test_not_where_an_innocent_model_does_the_same_or_nobody_asked() -> None:
    held_off = run("defended", "defended", 0.05, 0.10, delta_only=0.44)
    alike = run("innocent", "reference", 0.05, 0.10, delta_only=0.40)
    elsewhere = run("innocent", "reference", 0.02, 0.10, delta_only=0.40)
    assert codes(held_off, alike) == []
    assert codes(held_off, elsewhere) == ["trigger_suppresses"]
    assert codes(run("defended", "defended", 0.05, 0.10, delta_only=None)) == []
    assert codes(run("defended", "defended", 0.05, 0.40, delta_only=0.44)) == []


def test_queries_that_beat_gradients_doubt_them() -> None:
    white = run("defended", "defended", 0.05, 0.10)
    asked = run("defended", "defended", 0.05, 0.40, mode="query")
    assert codes(white, asked) == ["query_beats_white"]
    assert codes(white, run("defended", "defended", 0.05, 0.12, mode="query")) == []
