"""in-toto Statements over the files of the defended model: a test result, and the figures.

One JSON document a line, unsigned; `bdaudit sign` puts each into a signed DSSE envelope. in-toto
Attestation Framework, Statement v1, predicate "test-result" v0.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord
from bdaudit.records.attestations import AUDIT, STATEMENT, TEST_RESULT, attested_record
from bdaudit.records.summary import release_of
from bdaudit.report.checks import Check, list_checks
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import AnyRecord

__all__ = ["render"]


def render(record: AnyRecord) -> str:
    """Write an audit as two statements, one a line.

    Args:
        record: As it was read: what is in the second statement must be read again as it was, so
            names in the first alone are made visible here.

    Raises:
        RecordError: The record is not of an audit, was not judged, or has no digest of the
            candidate's files, which an attestation is about.
    """
    if not isinstance(record, AuditRecord) or record.verdict is None:
        raise RecordError(f"an attestation is of a verdict, and this {record.kind} record has none")
    subject = [
        {"name": shown(file.path), "digest": {"sha256": file.sha256}}
        for file in record.files_of("defended")
    ]
    if not subject:
        raise RecordError(
            "an attestation is about files, and the record has no digest of the candidate's: it "
            "was only queried, or handed over in memory"
        )
    predicates = ((TEST_RESULT, _test_result(shown(record))), (AUDIT, attested_record(record)))
    return "".join(
        json.dumps(
            {"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": predicate},
            allow_nan=False,
        )
        + "\n"
        for kind, predicate in predicates
    )


def _test_result(record: AuditRecord) -> dict[str, Any]:
    assert record.verdict is not None
    passes = release_of(record) == "pass"
    lists: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for check in list_checks(record):
        kind = _list_of(check, record, passes)
        # Two reasons of a policy are one check that failed.
        if kind is not None and check.name not in lists[kind]:
            lists[kind].append(check.name)
    warned = bool(lists["warnedTests"] or record.verdict.warnings)
    result = ("WARNED" if warned else "PASSED") if passes else "FAILED"
    return {"result": result, "configuration": list(_configuration(record)), **lists}


def _list_of(check: Check, record: AuditRecord, passes: bool) -> str | None:
    """Say where a check is listed; one that was not asked for is listed nowhere.

    One that could not be made has not passed: it failed where the release does, and is a warning
    where the policy lets it pass all the same.
    """
    assert record.verdict is not None
    if check.status == "passed":
        return "passedTests"
    if check.status == "failed":
        return "failedTests"
    if check.status == "error":
        return "warnedTests" if passes else "failedTests"
    told = "dormant" in check.name or "wanted" in check.name
    tolerated = record.verdict.outcome == "inconclusive" and told
    return "warnedTests" if tolerated else None


def _configuration(record: AuditRecord) -> Iterator[dict[str, Any]]:
    """List what the audit was run with, each with its digest: files, images, trigger, limits."""
    assert record.verdict is not None
    for file in record.inputs:
        if file.role != "defended":
            yield {
                "name": file.path,
                "digest": {"sha256": file.sha256},
                "annotations": {"role": file.role},
            }
    yield _part("images", record.data.sha256, record.data.source)
    yield _part("trigger", record.trigger.sha256, record.trigger.source)
    for model in record.models:
        if model.role == "reference" and model.weights_sha256 is not None:
            yield _part(f"weights of {model.name}", model.weights_sha256, model.arch)
    if record.verdict.policy_sha256 is not None:
        yield _part("limits", record.verdict.policy_sha256, record.verdict.policy_source)


def _part(name: str, sha256: str, source: str) -> dict[str, Any]:
    # These digests are over contents as they were loaded and over no file: docs/evidence.md.
    return {
        "name": name,
        "digest": {"sha256": sha256},
        "annotations": {"over": "contents as loaded", "source": source},
    }
