"""Nothing on a page is cut or has to be scrolled sideways: phone, screen and paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdaudit.report import benchmark_html, comparison_html, difference_html, html_report
from bdaudit.report.chart import Line, draw_chart
from bdaudit.report.glossary import GLOSSARY
from bdaudit.report.many_html import defenses_html, sweep_html
from tests.report.conftest import OpenPage
from tests.report.many import (
    LONG,
    comparison_record,
    defense_record,
    difference_record,
    sweep_record,
    whole_record,
)
from tests.report.test_benchmark_reports import benchmark

_TOO_WIDE = """() => {
  const room = document.documentElement.clientWidth
  const boxes = [...document.querySelectorAll('td, th, dt, dd, li, p, h1, h2, h3, .scroll')]
  return boxes.filter(box => {
    const at = box.getBoundingClientRect()
    const wide = at.right > room + 1 || box.scrollWidth > box.clientWidth + 1
    return at.width && at.left >= 0 && wide
  }).map(box => box.textContent.trim().slice(0, 40))
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Every kind of page, and what must be seen on it."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "audit": (html_report.render(whole_record()), ("96.2%", "+89.8", "reference 3")),
        "compare": (
            comparison_html.render(comparison_record()),
            (LONG, "+89.8 (+87 to +91)", "0.55 to 0.57", "96.2%", "original", "innocent models"),
        ),
        "benchmark": (
            benchmark_html.render(benchmark()),
            ("sleeping", "inconclusive", "lift over all controls", "BEC"),
        ),
        "diff": (
            difference_html.render(difference_record(folder)),
            (f"{LONG}.safetensors", "+89.8 (+87.4..+91.3)", "+90.7..+94.0", "1.2.3"),
        ),
        "sweep": (sweep_html(sweep_record()), (f"{LONG}/active", "84.7%", "+61.5", "0.56")),
        "defend": (defenses_html(defense_record()), ("91.3%", "1.2%", "it diverged")),
    }
    for name, (text, _) in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html", wanted) for name, (_, wanted) in made.items()}


@pytest.mark.parametrize(("width", "media"), [(400, "screen"), (1280, "screen"), (718, "print")])
def test_no_page_is_cut_or_scrolled_sideways(
    pages: dict[str, tuple[Path, tuple[str, ...]]], look: OpenPage, width: int, media: str
) -> None:
    for name, (path, wanted) in pages.items():
        page = look(path, width=width).page
        page.emulate_media(media=media)
        assert page.evaluate(_TOO_WIDE) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.locator("body").inner_text()
        assert [each for each in wanted if each not in shown] == []


def test_the_page_says_whether_it_may_be_released_and_what_to_do() -> None:
    record = whole_record()
    assert record.verdict is not None
    text = html_report.render(record)
    for expected in ("release FAIL", "the default policy", "What now", "bdaudit defend ORIGINAL"):
        assert expected in text
    assert text.count("<li>") >= len(record.verdict.advice) == 3
    assert 'class="verdict loud dormant"' in text
    for anchor in re.findall(r'href="#word-([a-z-]+)"', text):
        assert f'id="word-{anchor}"' in text


def test_words_are_those_of_the_glossary() -> None:
    page = Path(__file__).parents[2].joinpath("docs/glossary.md").read_text(encoding="utf-8")
    for anchor, (word, meaning) in GLOSSARY.items():
        found = re.search(rf"### {re.escape(word)} {{ #{anchor} }}\n\n(.*?)\n\n", page, re.DOTALL)
        assert found is not None, word
        told = re.sub(r"\s*\(\[[^]]*]\([^)]*\)\)", "", found[1])
        told = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", told).replace("*", "")
        assert meaning == " ".join(told.split()), word


def test_the_axis_of_a_chart_is_to_scale_and_no_step_is_cut() -> None:
    line = Line("d", "D", "", [0.0, 0.25, 0.5, 1.0])
    ticks, places = ["alone", "0.01", "0.02", "0.05"], [0.0, 0.01, 0.02, 0.05]
    rows = draw_chart(ticks, lines=[line], width=60, height=11, positions=places).plain.split("\n")
    at = sorted(column for row in rows[:11] for column, mark in enumerate(row) if mark == "D")
    assert (at[3] - at[0]) / (at[1] - at[0]) == pytest.approx(5.0, abs=0.3)
    assert (at[2] - at[0]) / (at[1] - at[0]) == pytest.approx(2.0, abs=0.2)
    crowded = draw_chart(ticks, lines=[line], width=22, height=11, positions=places).plain
    below = crowded.split("\n")[12].split()
    assert below[0] == "alone"
    assert below[-1] == "0.05"
    assert set(below) <= set(ticks)
