"""OpenVEX: is this model affected by this backdoor, with the verdict as the reason.

The backdoor is named by its trigger's digest and its target, the product by the digests of its
files. A document speaks of one backdoor in one model; merged into an earlier one, the newest
statement about both holds. OpenVEX Specification v0.2.0.
"""

from __future__ import annotations

import json
from typing import Any

from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord, Verdict
from bdaudit.report.evidence import (
    LEFT_OUT,
    action_of,
    backdoor_name,
    backdoor_words,
    identifier,
    judged_audit,
    moment,
    product_of,
    status_of,
)
from bdaudit.report.wording import AnyRecord, not_proved

__all__ = ["merge", "render"]

_CONTEXT = "https://openvex.dev/ns/v0.2.0"


def render(record: AnyRecord) -> str:
    """Write an audit as an OpenVEX document of one statement.

    Raises:
        RecordError: The record is not of an audit, or was not judged.
    """
    audit, verdict = judged_audit(record, "a VEX document")
    return _written(_document(audit, verdict))


def merge(record: AnyRecord, existing: Any, source: str) -> str:
    """Add an audit to an OpenVEX document, whose other statements stay.

    An earlier statement about the same backdoor in the same model stays as well, as OpenVEX wants
    it: the newer one supersedes it by its time. An audit that is in it already changes nothing.

    Args:
        record: The audit.
        existing: The document, parsed.
        source: Where it is from, for messages.

    Raises:
        RecordError: As for `render`, or the document is no OpenVEX.
    """
    audit, verdict = judged_audit(record, "a VEX document")
    if (
        not isinstance(existing, dict)
        or not str(existing.get("@context")).startswith("https://openvex.dev/ns")
        or not isinstance(existing.get("statements"), list)
        or not isinstance(existing.get("version"), int)
    ):
        raise RecordError(f"{source}: expected an OpenVEX document to merge into")
    made = _document(audit, verdict)
    (statement,) = made["statements"]
    if statement in existing["statements"]:
        return _written(existing)
    return _written(
        {
            **existing,
            "version": existing["version"] + 1,
            "last_updated": max(moment(audit), str(existing.get("last_updated", ""))),
            "statements": [*existing["statements"], statement],
        }
    )


def _written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _document(audit: AuditRecord, verdict: Verdict) -> dict[str, Any]:
    backdoor, product = backdoor_name(audit), product_of(audit)
    status = status_of(verdict)
    statement: dict[str, Any] = {
        "@id": identifier(product, backdoor, moment(audit), verdict.outcome).urn,
        "vulnerability": {"name": backdoor, "description": backdoor_words(audit)},
        "timestamp": moment(audit),
        "products": [{"@id": product, "identifiers": {"purl": product}, **_hashes(audit)}],
        "status": status,
        "status_notes": "; ".join(
            (
                f"bdaudit {audit.environment.bdaudit}: {verdict.outcome}. {verdict.why}",
                f"not proved: {'; '.join(not_proved(audit))}",
                LEFT_OUT,
            )
        ),
    }
    if status == "not_affected":
        # None of the fixed justifications says "measured, and no more than innocent models do".
        statement["impact_statement"] = f"removed: {verdict.why}"
    if status == "affected":
        statement["action_statement"] = action_of(verdict)
    return {
        "@context": _CONTEXT,
        "@id": identifier(product, backdoor).urn,
        "author": "bdaudit",
        "role": "backdoor audit",
        "timestamp": moment(audit),
        "version": 1,
        "tooling": f"bdaudit {audit.environment.bdaudit}",
        "statements": [statement],
    }


def _hashes(audit: AuditRecord) -> dict[str, Any]:
    files = audit.files_of("defended")
    if len(files) == 1:
        return {"hashes": {"sha-256": files[0].sha256}}
    return {
        key: value
        for key, value in {
            "subcomponents": [{"hashes": {"sha-256": digest}} for digest in _distinct(audit)]
        }.items()
        if value
    }


def _distinct(audit: AuditRecord) -> list[str]:
    return list(dict.fromkeys(file.sha256 for file in audit.files_of("defended")))
