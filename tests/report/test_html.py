"""The HTML report, looked at in a real Chromium."""

from __future__ import annotations

import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from bdaudit.records import AuditRecord, ReactivationRecord, ScoreRecord
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, bec_record, relearning_record
from tests.report.conftest import OpenPage

SHAPES = [(1100, "light"), (1100, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are kept; $BDAUDIT_SCREENSHOTS names a folder that stays."""
    folder = Path(os.environ.get("BDAUDIT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def page(audited: AuditRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_report("html", audited), encoding="utf-8")
    return path


class Text(HTMLParser):
    """The text of a page, without that of its style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.text.append(data)


@pytest.mark.parametrize(("width", "scheme"), SHAPES)
def test_it_opens_quietly_and_is_accessible(
    page: Path, look: OpenPage, screenshots: Path, width: int, scheme: str
) -> None:
    seen = look(page, width=width, scheme=scheme)
    picture = screenshots / f"report-{width}-{scheme}.png"
    seen.page.screenshot(path=picture, full_page=True)
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.as_uri()]
    # Nothing sticks out to the side; wide tables scroll by themselves.
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    broken = seen.page.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
    assert broken == 0
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert (pixels[0, 0] > 128) == (scheme == "light")
    assert pixels.std() > 10
    violations = Axe().run(seen.page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in violations] == []


def test_the_colours_of_the_figures_follow_the_scheme(page: Path, look: OpenPage) -> None:
    colours = []
    for scheme in ("light", "dark"):
        seen = look(page, scheme=scheme)
        script = "getComputedStyle(document.querySelector('svg[role=img] .line-defended')).stroke"
        colours.append(seen.page.evaluate(script))
    assert all(re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour) for colour in colours)
    assert colours[0] != colours[1]
    assert "#0101" not in page.read_text(encoding="utf-8")  # no stand-in colour is left


def test_only_the_figure_that_fits_is_shown(page: Path, look: OpenPage) -> None:
    for width, shown in ((1100, "wide"), (400, "narrow")):
        seen = look(page, width=width)
        visible = seen.page.locator(".plot:visible").evaluate_all(
            "all => all.map(x => x.className)"
        )
        assert set(visible) == {f"plot {shown}"}
        # Curves of both attacks, relearning, layers by BEC, layers by TAC, success by queries.
        assert len(visible) == 6


def test_it_prints(page: Path, look: OpenPage, screenshots: Path) -> None:
    seen = look(page, scheme="dark")
    pdf = seen.page.pdf(path=screenshots / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF-")
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
    )
    # What is folded away on the screen is on paper.
    assert seen.page.locator("details table").last.is_visible()
    assert not seen.page.locator("nav").is_visible()


def test_a_reader_finds_what_decided(page: Path, audited: AuditRecord) -> None:
    # Words that lead to the glossary are elements of their own.
    text = " ".join(" ".join(Text(page.read_text(encoding="utf-8")).text).split())
    assert audited.verdict is not None
    assert audited.verdict.outcome == "dormant"
    for expected in (
        "DORMANT",
        audited.verdict.why,
        "Re-activation, white box",
        "Re-activation, queries only",
        "attack without trigger",
        "lift over the strongest control",
        "What the model was shown",
        "layer1.conv1",
        "What the queries bought",
        "What this does not prove",
        "bdaudit audit 'a file.safetensors' --original o.safetensors",
        *(m.weights_sha256 or "" for m in audited.models),
        *(f"{100 * run.asr.value:.1f}%" for run in audited.runs),
    ):
        assert expected in text, expected


def test_a_figure_says_its_numbers_to_those_who_cannot_see_it(
    page: Path, audited: AuditRecord
) -> None:
    descriptions = re.findall(r"<desc[^>]*>([^<]*)", page.read_text(encoding="utf-8"))
    for run in audited.runs_of(role="defended", condition="trigger"):
        said = f"{100 * run.asr.value:.1f}% at {run.eps:g}"
        assert any(said in description for description in descriptions)


def test_hostile_strings_stay_text(
    hostile: AuditRecord, look: OpenPage, tmp_path: Path, screenshots: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report("html", hostile), encoding="utf-8")
    seen = look(path)
    seen.page.screenshot(path=screenshots / "hostile.png", full_page=True)
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]
    assert seen.page.title().endswith("www.evil.example: dormant - bdaudit")
    assert seen.page.locator("script").count() == 0
    shown = seen.page.locator(".full").inner_text()
    assert shown.startswith("<script>document.title='owned'</script>")
    assert "\\u{0}\\u{202e}" in shown


def test_the_policy_of_the_page_forbids_what_escaping_might_miss(
    page: Path, look: OpenPage, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    smuggled = (
        "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x'>"
        "<p id=p style='color: rgb(1, 2, 3)' onclick='document.title=1'>x</p>"
    )
    whole = page.read_text(encoding="utf-8")
    broken.write_text(whole.replace("</main>", smuggled + "</main>"), encoding="utf-8")
    seen = look(broken)
    seen.page.click("#p")
    assert seen.page.title().endswith("- bdaudit")
    assert seen.page.evaluate("getComputedStyle(p).color") != "rgb(1, 2, 3)"
    assert len([c for c in seen.console if "Content Security Policy" in c]) >= 3
    responses = seen.page.evaluate("[...document.images].at(-1).naturalWidth")
    assert responses == 0


QUIET = {0.01: 0.02, 0.02: 0.04, 0.05: 0.3}
SMALL = {
    "active": audit_record(alone=0.9, defended=QUIET, innocents=[QUIET]),
    "removed": audit_record(defended=QUIET, innocents=[QUIET, QUIET, QUIET], bec=(bec_record(),)),
    "inconclusive": audit_record(defended={0.02: 0.15}, innocents=[{0.02: 0.05}], n=100),
    "without runs": audit_record(defended={}, innocents=[]),
}


@pytest.mark.parametrize("name", SMALL)
def test_any_audit_can_be_shown(name: str, look: OpenPage, tmp_path: Path) -> None:
    verdict = judge(SMALL[name], Policy())
    path = tmp_path / "report.html"
    path.write_text(
        render_report("html", SMALL[name].model_copy(update={"verdict": verdict})), encoding="utf-8"
    )
    seen = look(path)
    assert seen.console == []
    badge = seen.page.locator(".badge").inner_text()
    assert badge == verdict.outcome.upper()
    for reason in verdict.reasons:
        assert reason in seen.page.locator("header").inner_text()
    assert Axe().run(seen.page).response["violations"] == []


def test_a_record_that_was_not_judged_can_be_shown() -> None:
    assert "no verdict" in render_report("html", SMALL["removed"])


def test_the_other_verbs_have_pages_too(
    scored: ScoreRecord, reactivated: ReactivationRecord
) -> None:
    assert "BEC 0." in render_report("html", scored) or "BEC 1." in render_report("html", scored)
    text = render_report("html", reactivated)
    assert "Re-activation, white box" in text
    assert "What this does not prove" not in text


def test_the_same_record_gives_the_same_page(audited: AuditRecord, page: Path) -> None:
    assert render_report("html", audited) == page.read_text(encoding="utf-8")


def test_pictures_are_drawn_as_they_are(page: Path, audited: AuditRecord, look: OpenPage) -> None:
    assert audited.pictures is not None
    seen = look(page)
    shown = seen.page.locator(".strip img")
    assert shown.count() == 3 * len(audited.pictures.columns) + 1
    picture = Image.open(io.BytesIO(shown.first.screenshot()))
    assert picture.convert("L").getextrema()[1] > 100


def test_relearning_has_a_figure_and_a_table() -> None:
    made = audit_record(defended={0.02: 0.1}, innocents=[{0.02: 0.02}])
    found = relearning_record(0.8, outcome="dormant")
    html = render_report("html", made.model_copy(update={"relearning": found}))
    text = " ".join(Text(html).text)
    assert "How fast the trigger is relearned" in text
    assert "+80 points above the innocent model" in text
    assert "80.0% after 20" in html  # the figure's description
    assert "relearning-section" not in render_report("html", made)
