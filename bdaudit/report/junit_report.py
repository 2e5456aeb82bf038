"""JUnit XML: one suite an audit, one case a check.

A failure is the model's fault, an error is the audit's: it could not tell. The dialect is the one
that Jenkins, GitLab and GitHub's reporters read.
"""

from __future__ import annotations

from xml.etree import ElementTree

from bdaudit.errors import RecordError
from bdaudit.plain_text import visible
from bdaudit.records import AuditRecord
from bdaudit.records.verdict import WAIVED
from bdaudit.report.checks import Check, list_checks
from bdaudit.report.release import about_policy
from bdaudit.report.wording import AnyRecord, defended_file

__all__ = ["render"]

_TAGS = {"failed": "failure", "error": "error", "skipped": "skipped"}


def render(record: AnyRecord) -> str:
    """Write an audit as a JUnit test suite.

    Raises:
        RecordError: The record is not of an audit.
    """
    if not isinstance(record, AuditRecord):
        raise RecordError(f"JUnit reports checks, and this {record.kind} record has none")
    checks = list_checks(record)
    counts = {
        "tests": str(len(checks)),
        "failures": str(sum(c.status == "failed" for c in checks)),
        "errors": str(sum(c.status == "error" for c in checks)),
        "skipped": str(sum(c.status == "skipped" for c in checks)),
        "time": f"{record.elapsed_s:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "bdaudit", **counts})
    name = f"bdaudit {defended_file(record)}"
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": name, "timestamp": record.created.isoformat(), **counts}
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _properties(record):
        ElementTree.SubElement(properties, "property", {"name": key, "value": value})
    for check in checks:
        suite.append(_case(check, name))
    for element in root.iter():
        _keep_to_xml(element)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _properties(record: AuditRecord) -> list[tuple[str, str]]:
    properties = [("bdaudit", record.environment.bdaudit), ("seed", str(record.seed))]
    if record.verdict is not None:
        verdict = record.verdict
        properties += [("verdict", verdict.outcome), ("why", verdict.why)]
        properties += [("release", verdict.release or ""), ("policy", about_policy(verdict))]
        properties += [(f"advice {k}", line) for k, line in enumerate(verdict.advice, start=1)]
        properties += [("waiver", w) for w in verdict.warnings if w.startswith(WAIVED)]
    properties += [(f"sha256 {m.name}", m.weights_sha256 or "unknown") for m in record.models]
    return [*properties, ("sha256 trigger", record.trigger.sha256)]


def _case(check: Check, suite: str) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        {"classname": suite, "name": check.name, "time": f"{check.elapsed_s:.3f}"},
    )
    if check.status in _TAGS:
        outcome = ElementTree.SubElement(case, _TAGS[check.status], {"message": check.message})
        if check.status != "skipped":
            outcome.set("type", check.status)
        outcome.text = check.details or None
    else:
        lines = "\n".join(part for part in (check.message, check.details) if part)
        ElementTree.SubElement(case, "system-out").text = lines
    return case


def _keep_to_xml(element: ElementTree.Element) -> None:
    """Show what XML 1.0 has no characters for, wherever in the suite it stands."""
    for name, value in element.attrib.items():
        element.set(name, visible(value))
    element.text = None if element.text is None else visible(element.text)
