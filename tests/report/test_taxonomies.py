"""Names in other catalogues: the same in SARIF, in the page and in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bdaudit.foundation.modes import MODES
from bdaudit.records import AuditRecord
from bdaudit.report.formats import render_report
from bdaudit.report.taxonomies import ENTRIES, TAXONOMIES, access_of
from bdaudit.verdict import Policy, judge
from tests.records import audit_record

QUIET = {0.02: 0.04, 0.05: 0.1}
LOUD = {0.02: 0.4, 0.05: 0.8}
OF_THE_POLICY = ("bdaudit/release-policy", "bdaudit/wanted-trigger-lost")
PAGE = Path(__file__).parents[2] / "docs" / "taxonomies.md"


def judged(**figures: Any) -> AuditRecord:
    record = audit_record(**figures)
    return record.model_copy(update={"verdict": judge(record, Policy())})


def dormant() -> AuditRecord:
    return judged(defended=LOUD, innocents=[QUIET, QUIET])


def by_queries_alone() -> AuditRecord:
    """A model that the white-box attack leaves asleep and the one by queries wakes."""
    quiet = audit_record(defended=QUIET, innocents=[QUIET, QUIET])
    loud = audit_record(defended=LOUD, innocents=[QUIET, QUIET])
    asked = tuple(r.model_copy(update={"mode": "query"}) for r in loud.runs)
    record = quiet.model_copy(update={"runs": (*quiet.runs, *asked)})
    return record.model_copy(update={"verdict": judge(record, Policy())})


def log_of(record: AuditRecord) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(render_report("sarif", record))["runs"][0]
    return log


def names_in(references: list[dict[str, Any]], log: dict[str, Any]) -> set[str]:
    """Resolve references as a reader of SARIF does: by index, each checked against its id."""
    found = set()
    for reference in references:
        component = log["taxonomies"][reference["toolComponent"]["index"]]
        assert component["name"] == reference["toolComponent"]["name"]
        taxon = component["taxa"][reference["index"]]
        assert taxon["id"] == reference["id"]
        found.add(taxon["id"])
    return found


def test_a_dormant_alert_names_the_backdoor_and_the_access_that_woke_it() -> None:
    log = log_of(dormant())
    (result,) = log["results"]
    assert names_in(result["taxa"], log) == {
        "AML.T0018.000", "AML.T0043.004", "AML.T0044", "AML.T0043.000",
        "CWE-912", "CWE-1039", "ML10:2023", "ML01:2023",
    }  # fmt: skip


def test_only_the_attack_that_decided_is_named() -> None:
    record = by_queries_alone()
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert access_of(record) == ("query",)
    log = log_of(record)
    named = names_in(log["results"][0]["taxa"], log)
    assert {"AML.T0040", "AML.T0043.001"} <= named
    assert not {"AML.T0044", "AML.T0043.000"} & named


def test_an_active_backdoor_needs_no_perturbation() -> None:
    log = log_of(judged(alone=0.9, defended=QUIET, innocents=[QUIET]))
    assert names_in(log["results"][0]["taxa"], log) == {
        "AML.T0018.000", "AML.T0043.004", "CWE-912", "ML10:2023", "ML01:2023",
    }  # fmt: skip


def test_rules_point_into_the_catalogues_and_the_policys_names_none() -> None:
    log = log_of(dormant())
    assert [(t["name"], t["version"]) for t in log["taxonomies"]] == [
        (t.name, t.version) for t in TAXONOMIES
    ]
    supported = log["tool"]["driver"]["supportedTaxonomies"]
    assert [log["taxonomies"][s["index"]]["name"] for s in supported] == [
        s["name"] for s in supported
    ]
    for rule in log["tool"]["driver"]["rules"]:
        related = [r["target"] for r in rule.get("relationships", [])]
        assert bool(names_in(related, log)) == (rule["id"] not in OF_THE_POLICY)
        weaknesses = {t for t in rule["properties"]["tags"] if t.startswith("external/cwe/")}
        assert weaknesses == {
            f"external/cwe/{t['id'].lower()}" for t in related if t["id"].startswith("CWE")
        }


@pytest.mark.parametrize(
    ("record", "identifier", "became"),
    [
        (dormant(), "AML.T0018.000", "found"),
        (dormant(), "AML.T0044", "found"),
        (dormant(), "AML.T0040", "not tried"),
        (dormant(), "AML.T0041", "not tried"),
        (by_queries_alone(), "AML.T0040", "found"),
        (by_queries_alone(), "AML.T0044", "looked for, not decided on"),
        (judged(defended=QUIET, innocents=[QUIET, QUIET]), "CWE-912", "looked for, not found"),
        (judged(defended=QUIET, innocents=[QUIET, QUIET]), "AML.T0041", "not tried"),
        (judged(defended=QUIET, innocents=[QUIET], n=50), "CWE-912", "looked for, unsure"),
        (judged(alone=0.9, defended=QUIET, innocents=[QUIET]), "CWE-912", "found"),
        (
            judged(alone=0.9, defended=QUIET, innocents=[QUIET]),
            "CWE-1039",
            "looked for, not decided on",
        ),
    ],
)
def test_the_page_says_what_became_of_each(
    record: AuditRecord, identifier: str, became: str
) -> None:
    page = render_report("html", record).partition('id="taxonomies"')[2].partition("</table>")[0]
    (row,) = re.findall(rf"<tr>(?:(?!</tr>).)*<code>{re.escape(identifier)}</code>.*?</tr>", page)
    assert row.endswith(f"<td>{became}</td></tr>")
    assert page.count("<tr>") == len(ENTRIES) + 1


def test_the_docs_have_the_same_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for taxonomy in TAXONOMIES:
        assert f"[{taxonomy.name}]({taxonomy.url}), {taxonomy.title} | {taxonomy.version} |" in text
    rows = [line for line in text.splitlines() if re.match(r"\| \[(AML|CWE-|ML)", line)]
    for entry, row in zip(ENTRIES, rows, strict=True):
        findings = ", ".join(entry.findings) or "none"
        modes = ", ".join(MODES[mode].label for mode in entry.modes)
        alone = f"{modes.removesuffix(' only')} only"
        of = f"{findings}; {alone}" if modes else findings
        assert row == (
            f"| [{entry.identifier}]({entry.url}) | {entry.name} | {entry.here} | {of} |"
        )


def test_every_kind_of_attack_has_its_access_and_its_search() -> None:
    for mode in MODES:
        assert sum(mode in entry.modes for entry in ENTRIES) == 2, mode
