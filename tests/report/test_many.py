"""Many models in one file: CSV that others read back, and pages."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from bdaudit.report import difference_html, difference_markdown
from bdaudit.report.many_csv import (
    benchmark_csv,
    comparison_csv,
    defenses_csv,
    difference_csv,
    sweep_csv,
)
from bdaudit.report.many_html import defenses_html, sweep_html
from tests.report.conftest import HOSTILE
from tests.report.many import (
    LONG,
    comparison_record,
    defense_record,
    difference_record,
    sweep_record,
)
from tests.report.test_benchmark_reports import benchmark


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_comparison_gives_a_row_a_model() -> None:
    best, worst = rows(comparison_csv(comparison_record()))
    assert (best["model"], best["verdict"], best["release"]) == ("unlearned", "removed", "pass")
    assert (worst["model"], worst["verdict"], worst["release"]) == (LONG, "dormant", "fail")
    assert (worst["bec_low"], worst["bec_high"]) == ("0.55", "0.57")
    assert float(worst["lift"]) == pytest.approx(0.898)
    assert float(worst["lift_low"]) < 0.898 < float(worst["lift_high"])
    assert (worst["asr"], worst["reactivated_asr"], worst["eps"]) == ("0.064", "0.962", "0.05")


def test_a_sweep_gives_a_row_an_audit_failed_ones_too() -> None:
    found = rows(sweep_csv(sweep_record()))
    assert [row["outcome"] for row in found] == [
        *("removed", "dormant", "active", "inconclusive", ""),
    ]
    assert found[-1]["why"] == "no such file"
    assert found[1]["lift"] == "0.615"
    assert found[-1]["lift"] == ""


def test_defences_and_benchmarks_give_a_row_each() -> None:
    tried = rows(defenses_csv(defense_record()))
    assert [row["method"] for row in tried] == ["anp", "finetune", "nad"]
    assert tried[0]["clean_acc"] == "0.913"
    record = benchmark()
    cases = rows(benchmark_csv(record))
    assert [row["member"] for row in cases] == [case.member for case in record.cases]
    assert [row["truth"] for row in cases] == [case.truth for case in record.cases]


def test_a_difference_gives_the_verdict_each_figure_and_each_input(tmp_path: Path) -> None:
    made = difference_record(tmp_path)
    outcome, release, *others = rows(difference_csv(made))
    assert (outcome["old"], outcome["new"], outcome["change"]) == ("removed", "dormant", "worse")
    assert (release["old"], release["new"]) == ("pass", "fail")
    woken = next(r for r in others if (r["name"], r["eps"]) == ("reactivated_asr", "0.02"))
    assert (woken["old"], woken["new"], woken["difference"]) == ("0.037", "0.487", "0.45")
    assert float(woken["low"]) < 0.45 < float(woken["high"])
    assert (woken["paired"], woken["change"]) == ("true", "worse")
    candidate = next(r for r in others if (r["kind"], r["name"]) == ("model", "defended"))
    assert len(candidate["new"]) == 64
    assert candidate["change"] == "changed"
    text = difference_markdown.render(made)
    assert ":x: bdaudit diff" in text
    assert "release PASS became release FAIL" in text
    assert text.count("\n|") >= len(made.figures) + 2


def test_names_of_a_difference_are_text(tmp_path: Path) -> None:
    made = difference_record(tmp_path)
    hostile = made.new.model_copy(update={"model": HOSTILE, "why": HOSTILE, "record": HOSTILE})
    inputs = tuple(i.model_copy(update={"name": HOSTILE, "new": "=1+1"}) for i in made.inputs)
    made = made.model_copy(update={"new": hostile, "inputs": inputs, "notes": (HOSTILE,)})
    page = difference_html.render(made)
    assert "<script>" not in page
    assert "<img" not in page
    assert "](http" not in difference_markdown.render(made)
    assert all(row["new"] != "=1+1" for row in rows(difference_csv(made)))


def test_pages_show_every_model_and_the_worst_of_a_sweep_first() -> None:
    page = sweep_html(sweep_record())
    assert page.index(f"{LONG}/active</th>") < page.index(f"{LONG}/removed</th>")
    for expected in ("84.7%", "+61.5", "0.56", "no such file", 'data-label="lift, points"'):
        assert expected in page
    page = defenses_html(defense_record())
    for expected in ("Adversarial neuron pruning (anp)", "91.3%", "it diverged", "it remembers"):
        assert expected in page


def test_names_are_text_in_both() -> None:
    made = sweep_record()
    hostile = made.audits[0].model_copy(update={"key": HOSTILE, "why": "=1+1"})
    made = made.model_copy(update={"audits": (hostile,)})
    assert "<script>" not in sweep_html(made)
    (row,) = rows(sweep_csv(made))
    assert row["why"] == "'=1+1"
