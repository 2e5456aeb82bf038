"""SARIF 2.1.0 for code scanning: the verdict as an alert on the defended file.

A removed backdoor gives a run without results, which closes an alert of an earlier audit. Level
and severity follow the verdict, and what the policy made of it. Doubts are notifications of the
tool and not alerts. Static Analysis Results Interchange Format (SARIF) Version 2.1.0, OASIS 2020,
and GitHub's "SARIF support for code scanning".
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from datetime import UTC
from pathlib import PurePath, PureWindowsPath
from typing import Any
from urllib.parse import quote, urlsplit

from bdaudit.errors import RecordError
from bdaudit.foundation.modes import MODES
from bdaudit.records import AuditRecord, Diagnostic, Verdict
from bdaudit.records.verdict import WAIVED
from bdaudit.report.release import about_policy
from bdaudit.report.taxonomies import (
    ENTRIES,
    TAXONOMIES,
    Entry,
    Finding,
    Taxonomy,
    access_of,
    entries_of,
)
from bdaudit.report.untrusted import sarif_message
from bdaudit.report.wording import (
    AnyRecord,
    defended_file,
    find_decisive,
    not_proved,
)

__all__ = ["render"]

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_RULES: dict[Finding, dict[str, str]] = {
    "active": {
        "id": "bdaudit/active-backdoor",
        "name": "ActiveBackdoor",
        "short": "The backdoor still works",
        "full": "The trigger alone still takes images to the attacker's class.",
        "help": (
            "The defence did not work. Do not release the model: whoever knows the trigger "
            "chooses its answer. Repeat the defence with other settings, or train again from "
            "clean data, and audit the result."
        ),
        "severity": "9.3",
        "level": "error",
    },
    "dormant": {
        "id": "bdaudit/dormant-backdoor",
        "name": "DormantBackdoor",
        "short": "The backdoor is asleep, not gone",
        "full": (
            "The trigger alone no longer works, but with one tiny perturbation for all images it "
            "does, clearly more than on innocent models under the same attack."
        ),
        "help": (
            "Whoever knows the trigger can wake the backdoor with a perturbation too small to "
            "see. Do not release the model. Another defence, or one that unlearns the trigger "
            "itself, may remove it; audit the result again. The report of the audit shows at "
            "which size of the perturbation it wakes, and how the controls compare."
        ),
        "severity": "8.1",
        "level": "error",
    },
    "inconclusive": {
        "id": "bdaudit/inconclusive-audit",
        "name": "InconclusiveAudit",
        "short": "The audit could not tell whether the backdoor is gone",
        "full": (
            "Something stood in the way of a verdict: too few images, no innocent models to "
            "compare with, controls that saturate, a step that failed."
        ),
        "help": (
            "The message names what stood in the way. More clean images, three or more innocent "
            "models put through the same defence, or smaller perturbations usually settle it."
        ),
        "severity": "5.5",
        "level": "warning",
    },
    "policy": {
        "id": "bdaudit/release-policy",
        "name": "ReleasePolicy",
        "short": "The policy forbids this release",
        "full": "A limit of the release policy beside the backdoor itself is not kept.",
        "help": (
            "The message says which limit: accuracy lost by the defence, files that were not "
            "audited or are not on the list. Change the candidate, or the policy."
        ),
        "severity": "4.0",
        "level": "error",
    },
    "lost": {
        "id": "bdaudit/wanted-trigger-lost",
        "name": "WantedTriggerLost",
        "short": "The wanted trigger no longer works",
        "full": (
            "The policy expects a trigger that the model carries on purpose to be active, and it "
            "is gone or asleep."
        ),
        "help": (
            "Something after the teaching took the trigger away: fine-tuning, pruning, quantising, "
            "or the wrong file. Teach it again, or release the weights from before, and audit "
            "those."
        ),
        "severity": "4.0",
        "level": "error",
    },
}


def render(record: AnyRecord) -> str:
    """Write an audit as a SARIF log.

    Raises:
        RecordError: The record is not of an audit, or was not judged.
    """
    if not isinstance(record, AuditRecord) or record.verdict is None:
        raise RecordError(f"SARIF reports verdicts, and this {record.kind} record has none")
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [_run(record, record.verdict)]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _run(record: AuditRecord, verdict: Verdict) -> dict[str, Any]:
    file = _uri(defended_file(record))
    failed = [step for step in record.steps if step.status == "failed"]
    codes = list(dict.fromkeys(d.code for d in record.diagnostics))
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "bdaudit",
                "version": record.environment.bdaudit,
                "supportedTaxonomies": [_reference(taxonomy) for taxonomy in TAXONOMIES],
                "rules": [_rule(kind, rule) for kind, rule in _RULES.items()],
                "notifications": [_descriptor(code) for code in codes],
            }
        },
        # One category a model, so that audits of several in one repository do not close each
        # other's alerts.
        "automationDetails": {"id": f"bdaudit/{file}/"},
        "columnKind": "unicodeCodePoints",
        "taxonomies": [_taxonomy(taxonomy) for taxonomy in TAXONOMIES],
        "artifacts": list(_artifacts(record)),
        "invocations": [
            {
                "executionSuccessful": not failed,
                "startTimeUtc": record.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "toolExecutionNotifications": [
                    *(_notification(d, codes) for d in record.diagnostics),
                    *(
                        {
                            "level": "error",
                            "message": _message(f"step {s.name} failed: {s.reason or ''}"),
                        }
                        for s in failed
                    ),
                ],
                **({} if record.command is None else {"commandLine": shlex.join(record.command)}),
            }
        ],
        "results": list(_results(record, verdict, file)),
        "properties": {
            "verdict": verdict.outcome,
            "release": verdict.release,
            "policy": about_policy(verdict),
            "advice": list(verdict.advice),
            "notProved": not_proved(record),
        },
    }
    return run


def _rule(kind: Finding, rule: dict[str, str]) -> dict[str, Any]:
    entries = entries_of(kind, modes=MODES)
    # What GitHub shows beside a rule and filters alerts by.
    weaknesses = [
        f"external/cwe/{e.identifier.lower()}" for e in entries if e.taxonomy.name == "CWE"
    ]
    return {
        "id": rule["id"],
        "name": rule["name"],
        "shortDescription": {"text": rule["short"]},
        "fullDescription": {"text": rule["full"]},
        "help": {
            "text": f"{rule['full']} {rule['help']}",
            "markdown": f"**{rule['short']}.** {rule['full']}\n\n{rule['help']}",
        },
        "defaultConfiguration": {"level": rule["level"]},
        "properties": {
            "tags": ["security", "machine-learning", "backdoor", *weaknesses],
            "precision": "high",
            "problem.severity": rule["level"],
            "security-severity": rule["severity"],
        },
        **(
            {"relationships": [{"target": _taxon(e), "kinds": ["relevant"]} for e in entries]}
            if entries
            else {}
        ),
    }


def _taxonomy(taxonomy: Taxonomy) -> dict[str, Any]:
    return {
        "name": taxonomy.name,
        "version": taxonomy.version,
        "fullName": taxonomy.title,
        "organization": taxonomy.organization,
        "informationUri": taxonomy.url,
        "shortDescription": {"text": taxonomy.title},
        # What an audit speaks of, and not all of the catalogue.
        "isComprehensive": False,
        "taxa": [
            {
                "id": entry.identifier,
                "name": entry.name,
                "shortDescription": {"text": entry.name},
                "fullDescription": {"text": f"In an audit: {entry.here}."},
                "helpUri": entry.url,
            }
            for entry in _entries_in(taxonomy)
        ],
    }


def _entries_in(taxonomy: Taxonomy) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.taxonomy is taxonomy]


def _reference(taxonomy: Taxonomy) -> dict[str, Any]:
    return {"name": taxonomy.name, "index": TAXONOMIES.index(taxonomy)}


def _taxon(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.identifier,
        "index": _entries_in(entry.taxonomy).index(entry),
        "toolComponent": _reference(entry.taxonomy),
    }


def _results(record: AuditRecord, verdict: Verdict, file: str) -> Iterator[dict[str, Any]]:
    finding = _finding(verdict)
    if finding is not None:
        # A policy that lets an audit pass that could not tell makes a warning of it.
        tolerated = verdict.outcome == "inconclusive" and verdict.release != "pass"
        level = "error" if tolerated else _RULES[finding]["level"]
        text = " ".join((verdict.why, *(f"{line}." for line in verdict.advice)))
        yield _result(finding, level, text, record, file, _figures(record))
    for reason in verdict.release_reasons:
        yield _result("policy", "error", f"Not to be released: {reason}.", record, file, {})
    for warning in verdict.warnings:
        if warning.startswith(WAIVED):
            yield _result("policy", "warning", f"{warning}.", record, file, {})


def _finding(verdict: Verdict) -> Finding | None:
    """Return what of the verdict is an alert; `None` where it is as the policy expects."""
    if verdict.outcome == "inconclusive":
        return "inconclusive"
    if verdict.wanted:
        return None if verdict.outcome == "active" else "lost"
    return None if verdict.outcome == "removed" else verdict.outcome


def _figures(record: AuditRecord) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    defended = record.defended
    if defended is not None:
        figures["asr"] = defended.asr.value
    decisive = find_decisive(record)
    if decisive is not None:
        run, lift = decisive
        figures |= {
            "eps": run.eps,
            "norm": run.norm,
            "reactivatedAsr": run.asr.value,
            "lift": lift.value,
            "strongestControl": lift.against,
        }
    return figures


def _result(
    kind: Finding, level: str, text: str, record: AuditRecord, file: str, figures: dict[str, Any]
) -> dict[str, Any]:
    rule = _RULES[kind]
    # What stays the same when the same problem is found again in another build of the model.
    parts = [rule["id"], file, record.trigger.kind, str(record.trigger.target_label)]
    if kind == "policy":
        parts.append(text.split("(", 1)[0])
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    entries = entries_of(kind, modes=access_of(record))
    return {
        "ruleId": rule["id"],
        "ruleIndex": list(_RULES).index(kind),
        "level": level,
        "message": _message(text),
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": file, "index": 0},
                    # A model has no lines, and code scanning wants one.
                    "region": {"startLine": 1},
                }
            }
        ],
        "partialFingerprints": {
            "bdaudit/v1": fingerprint,
            "primaryLocationLineHash": f"{fingerprint[:16]}:1",
        },
        **({"taxa": [_taxon(entry) for entry in entries]} if entries else {}),
        "properties": figures,
    }


def _artifacts(record: AuditRecord) -> Iterator[dict[str, Any]]:
    """List the files of the audit, the defended one first."""
    own = defended_file(record)
    digests = {f.path: f for f in record.inputs}
    known = digests.pop(own, None)
    entry: dict[str, Any] = {"location": {"uri": _uri(own)}, "roles": ["analysisTarget"]}
    if known is not None:
        entry |= {"hashes": {"sha-256": known.sha256}, "length": known.size_bytes}
    yield entry
    for file in digests.values():
        yield {
            "location": {"uri": _uri(file.path)},
            "hashes": {"sha-256": file.sha256},
            "length": file.size_bytes,
            "description": _message(file.role),
        }


def _descriptor(code: str) -> dict[str, Any]:
    return {
        "id": f"bdaudit/{quote(code)}",
        "shortDescription": {"text": code.replace("_", " ")},
    }


def _notification(diagnostic: Diagnostic, codes: list[str]) -> dict[str, Any]:
    return {
        "descriptor": {
            "id": f"bdaudit/{quote(diagnostic.code)}",
            "index": codes.index(diagnostic.code),
        },
        "level": _LEVELS[diagnostic.severity],
        "message": _message(f"{diagnostic.subject}: {diagnostic.message}"),
    }


def _message(text: str) -> dict[str, str]:
    return {"text": sarif_message(text)}


def _uri(path: str) -> str:
    """Write a path as the address of an artefact, relative to the repository where it is so."""
    if urlsplit(path).scheme in ("http", "https", "s3", "gs", "hf"):
        return quote(path, safe="/:@?=&#%+~,;")
    if PureWindowsPath(path).drive:
        return PureWindowsPath(path).as_uri()
    plain = PurePath(path)
    if plain.is_absolute():
        return plain.as_uri()
    return quote(plain.as_posix()) or "defended"
