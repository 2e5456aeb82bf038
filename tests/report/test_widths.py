"""Nothing is cropped: every table of the terminal at the widths that terminals have."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bdaudit.report.benchmark_terminal import print_benchmark
from bdaudit.report.comparison_terminal import print_comparison
from bdaudit.report.defenses import print_defenses
from bdaudit.report.difference_terminal import print_difference
from bdaudit.report.sweep_terminal import print_sweep
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.terminal import print_record
from tests.records import relearning_record
from tests.report.many import (
    LONG,
    comparison_record,
    defense_record,
    difference_record,
    sweep_record,
    whole_record,
)
from tests.report.test_benchmark_reports import benchmark

WIDTHS = (60, 80, 100, 140)


def printed(show: Callable[[Console], None], width: int) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def shows(text: str, wanted: str) -> bool:
    """Whether `wanted` stands there: a figure whole, a name whole or folded over lines."""
    if re.search(rf"(?<![\w.+-]){re.escape(wanted)}(?![\w%])", text):
        return True
    folded = r"(?:[^\n]*\n)?".join(map(re.escape, wanted.replace(" ", "")))
    return not re.match(r"[+-]?\d", wanted) and bool(re.search(folded, text.replace(" ", "")))


def audit(console: Console) -> None:
    record = whole_record().model_copy(
        update={"relearning": relearning_record(0.8, outcome="dormant")}
    )
    print_record(record, console)


CASES: dict[str, tuple[Callable[[Console], None], tuple[str, ...]]] = {
    "audit": (
        audit,
        (
            "6.4% (5.0-8.1)",
            "100.0% (99.6-100.0)",
            "0.55-0.57",
            *("0.005", "0.01", "0.02", "0.03", "0.05"),
            *("4.1%", "21.3%", "48.7%", "73.1%", "96.2%"),
            *("-2", "+15", "+42", "+67", "+90"),
            *("same delta, no trigger", "attack without trigger", "reference 3"),
            *("layer1.0.conv1", "2/16", "0.70", "0.40", "0.50"),
        ),
    ),
    "compare": (
        lambda console: print_comparison(comparison_record(), console),
        (
            *(LONG, "unlearned", "dormant", "removed", "90.0%", "6.4%", "96.2%", "3.7%", "+89.8"),
            *("0.55-0.57", "100.0%", "original", "innocent", "1", "0"),
        ),
    ),
    "sweep": (
        lambda console: print_sweep(sweep_record(), console),
        (
            *(f"{LONG}/inconclusive", "broken", "inconclusive", "91.2%", "3.1%", "84.7%"),
            *("+61.5", "0.56", "failed"),
        ),
    ),
    "defend": (
        lambda console: print_defenses(defense_record(), Path("out"), console),
        ("anp", "finetune", "removed", "91.3%", "1.2%", "1234 + 5678", "audit", "failed"),
    ),
    "bench": (
        lambda console: print_benchmark(benchmark(), console),
        ("sleeping", "inconclusive", "lift over all controls", "re-activation (white)"),
    ),
}


def test_a_difference_is_shown_whole_at_every_width(tmp_path: Path) -> None:
    made = difference_record(tmp_path)
    wanted = (
        *("removed", "dormant", "release PASS", "release FAIL", f"{LONG}.safetensors"),
        *("clean accuracy", "re-activated eps 0.005", "lift eps 0.05", "BEC, reference 2"),
        *("90.0% (88.0-91.7)", "96.2% (94.8-97.2)", "+92.5", "+89.8 (+87.4..+91.3)", "1.2.3"),
        *("+90.7..+94.0", "-0.4..+0.4", "0.57 (0.35-0.47)", "WORSE", "weights defended"),
    )
    for width in WIDTHS:
        text = printed(lambda console: print_difference(made, console), width)
        assert max(map(len, text.splitlines())) <= width
        assert [each for each in wanted if not shows(text, each)] == [], width
        assert "…" not in text


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_figure_and_no_name_is_cropped(name: str, width: int) -> None:
    show, wanted = CASES[name]
    text = printed(show, width)
    assert max(map(len, text.splitlines())) <= width
    assert [each for each in wanted if not shows(text, each)] == []
    assert "…" not in text


@pytest.mark.parametrize("width", range(24, 101))
def test_a_table_keeps_every_cell_whole_at_any_width(width: int) -> None:
    table = FittedTable("name", Column("said", text=True), "first figure", "second", "third")
    table.add_row("a-name-of-twenty-two-c", "some words here", "100.0% (98-100)", "+12.5", "3")
    table.add_row("b", "", "7.5%", "-", "0.55-0.57")
    text = printed(lambda console: console.print(table), width)
    assert max(map(len, text.splitlines())) <= width
    for figure in ("+12.5", "7.5%", "0.55-0.57", "3"):
        assert shows(text, figure), figure
    assert shows(text, "a-name-of-twenty-two-c")
    if width >= 30:
        assert shows(text, "100.0% (98-100)")
    if width >= 80:
        assert len(text.splitlines()) == 3


def test_what_only_repeats_a_number_is_left_out_before_a_table_is_split() -> None:
    table = FittedTable("layer", "BEC", Column("bar", text=True, spare=True))
    table.add_row("layer1.conv1", "0.50", "############............")
    assert "#" in printed(lambda console: console.print(table), 60)
    assert "#" not in printed(lambda console: console.print(table), 36)
    assert printed(lambda console: console.print(table), 30).split() == [
        *("layer", "BEC", "layer1.conv1", "0.50")
    ]
