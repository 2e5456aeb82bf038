from __future__ import annotations

import io

import pytest
from rich.console import Console, Group

from bdaudit.records import AuditRecord, Diagnostic
from bdaudit.report import html_report, markdown_report
from bdaudit.report.chart import Band, Line, draw_chart
from bdaudit.report.relearning import relearning_parts
from bdaudit.report.terminal import print_record
from bdaudit.report.wording import one_line
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, bec_record, placebos, relearning_record

QUIET = {0.01: 0.02, 0.02: 0.04, 0.05: 0.3}


def judged(record: AuditRecord) -> AuditRecord:
    return record.model_copy(update={"verdict": judge(record, Policy())})


def whole() -> AuditRecord:
    return judged(
        audit_record(
            alone=0.06,
            defended={0.01: 0.2, 0.02: 0.4, 0.05: 0.8},
            innocents=[QUIET, QUIET, {0.01: 0.03, 0.02: 0.06, 0.05: 0.5}],
            bec=(bec_record(),),
            bec_missing=None,
            diagnostics=(
                Diagnostic(code="made_up", severity="warning", message="look [here]", subject="x"),
            ),
        )
    )


class Ascii(io.StringIO):
    """A stream whose reader knows no characters beyond ASCII."""

    encoding = "ascii"


def printed(record: AuditRecord, *, width: int = 80, ascii_only: bool = False) -> str:
    stream = Ascii() if ascii_only else io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    print_record(record, console)
    return stream.getvalue()


def test_everything_a_reader_needs_is_there() -> None:
    text = printed(whole())
    for expected in (
        "DORMANT",
        "80.0%",  # re-activated at eps .05
        "reference 3",
        "same delta, no trigger",
        "attack without trigger",
        "+30",  # lift over the strongest null at .05: 80 - 50
        "layer1.0.conv1",
        "left out",  # the undefined layer
        "0.41 (0.35-0.47)",
        "made_up",
        "look [here]",  # brackets are text, not markup
        "What this does not prove",
        "seed 0",
    ):
        assert expected in text, expected


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = printed(whole(), width=width)
    assert max(map(len, text.splitlines())) <= width


def test_every_report_says_how_the_inputs_were_read() -> None:
    made = whole()
    noted = made.models[0].model_copy(update={"notes": ("stripped 'module.'",)})
    data = made.data.model_copy(update={"notes": ("left out 3 files",)})
    record = made.model_copy(update={"models": (noted, *made.models[1:]), "data": data})
    for text in (printed(record, width=132), html_report.render(record)):
        assert "How the inputs were read" in text
        assert "images: left out 3 files" in text
        assert "How the inputs were read" not in printed(made)
    assert "images&#58; left out 3 files" in markdown_report.render(record)
    assert "How the inputs were read" not in markdown_report.render(made)


def test_a_terminal_without_utf8_gets_ascii() -> None:
    printed(whole(), ascii_only=True).encode("ascii")


def test_every_outcome_has_its_headline_and_reasons_are_listed() -> None:
    active = judged(audit_record(alone=0.9, defended=QUIET, innocents=[QUIET]))
    removed = judged(audit_record(defended=QUIET, innocents=[QUIET]))
    unsure = judged(audit_record(defended={0.02: 0.15}, innocents=[{0.02: 0.05}], n=100))
    for record, word in ((active, "ACTIVE"), (removed, "REMOVED"), (unsure, "INCONCLUSIVE")):
        assert word in printed(record)
        assert one_line(record).startswith(word.lower())
    assert unsure.verdict is not None
    assert len(unsure.verdict.reasons) > 1
    assert all(r.split()[0] in printed(unsure) for r in unsure.verdict.reasons)


def test_a_record_without_runs_can_be_shown() -> None:
    record = judged(audit_record(defended={}, innocents=[]))
    assert "INCONCLUSIVE" in printed(record)


def rows(text: str) -> list[str]:
    return text.splitlines()


def test_a_chart_puts_values_where_they_belong() -> None:
    line = Line("d", "D", "", [0.0, 0.5, 1.0])
    text = rows(draw_chart(["a", "b", "c"], lines=[line], width=40, height=11).plain)
    heights = [k for k, row in enumerate(text[:11]) if "D" in row]
    assert heights == [0, 5, 10]
    columns = [text[k].index("D") for k in heights]
    assert columns == sorted(columns, reverse=True)
    assert text[5].startswith("  50%")
    assert text[0].startswith(" 100%")


def test_a_chart_leaves_gaps_where_nothing_was_measured() -> None:
    line = Line("d", "D", "", [0.0, None, 1.0])
    text = draw_chart(["a", "b", "c"], lines=[line], width=40).plain
    assert "·" not in text
    assert rows(text)[0].count("D") == 1


def test_the_band_spans_lowest_to_highest() -> None:
    band = Band("innocent", "#", "", [0.2, 0.2], [0.8, 0.8])
    text = rows(draw_chart(["a", "b"], lines=[], band=band, width=40, height=11).plain)
    assert [k for k, row in enumerate(text[:11]) if "##" in row] == list(range(2, 9))


@pytest.mark.parametrize("width", [40, 80])
def test_an_audit_says_how_relearning_ended_and_relearn_shows_it(width: int) -> None:
    found = relearning_record(0.8, outcome="dormant")
    text = printed(whole().model_copy(update={"relearning": found}), width=width)
    assert "REMEMBERED" in text
    assert found.why in " ".join(text.split())
    assert "ASR after steps" not in text  # that is for the page, and for `bdaudit relearn`
    assert "REMEMBERED" not in printed(whole(), width=width)
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(Group(*relearning_parts(found, console)))
    shown = capture.get()
    assert "ASR after steps" in " ".join(shown.split())
    assert "+80.0 points (+78.0 to +82.0)" in " ".join(shown.split())
    assert max(map(len, f"{text}\n{shown}".splitlines())) <= width


def test_placebos_stand_beside_the_trigger() -> None:
    record = audit_record(defended={0.02: 0.57}, innocents=[{0.02: 0.35}], wide=True)
    record = record.model_copy(
        update={
            "placebos": placebos(
                {"defended": {0.02: [0.03, 0.05, 0.04]}, "reference 1": {0.02: [0.17, 0.2, 0.27]}}
            )
        }
    )
    for report in (html_report.render(record), markdown_report.render(record)):
        assert "17.0 to 27.0%" in report
        assert "Kept" in report
    for width in (60, 80, 140):
        text = printed(record, width=width)
        assert "Placebo triggers" in text
        assert "3.0 to 5.0%" in text
        assert "17.0 to 27.0%" in text
        assert "Kept: 3" in text
