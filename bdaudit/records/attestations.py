"""An audit as in-toto Statements, and back.

Two statements about the files of the defended model: a test result, which any verifier of in-toto
attestations knows, and one of a type of our own, which holds the figures and the record itself.
The second stands for the record: the gate judges it again from the figures of the record in it, and
all that is said beside must agree. In a file there is one statement a line; signed, one sigstore
bundle a line, with the statement in a DSSE envelope.

in-toto Attestation Framework, Statement v1; predicate "test-result" v0.1; DSSE v1.0.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdaudit.errors import RecordError, reads
from bdaudit.foundation.opening import RECORD_BYTES
from bdaudit.foundation.texts import decode_text, parse_json, read_text
from bdaudit.records.documents import AnyDocument, AuditRecord
from bdaudit.records.reading import parse_record, read_record, sealed
from bdaudit.records.summary import list_figures, release_of

__all__ = [
    "AUDIT",
    "LEFT_OUT",
    "PAYLOAD",
    "STATEMENT",
    "TEST_RESULT",
    "Attestation",
    "attested_record",
    "is_attestation",
    "is_signed",
    "read_attestation",
    "read_attested",
]

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
AUDIT = "https://pypi.org/project/bdaudit/#attestation-audit-v0.1"
"""The type of our own predicate; a change of what its keys mean changes it."""

PAYLOAD = "application/vnd.in-toto+json"
LEFT_OUT = ("pictures", "kept_trigger")
"""Parts of a record that an attestation leaves out: no verdict is judged from them."""

_WHAT = "a record, or an attestation (one JSON document a line)"


@dataclass(frozen=True)
class Attestation:
    """What a file of statements or of bundles holds.

    Attributes:
        statements: The statements, in the order of the file.
        bundles: The sigstore bundles they came in; empty where nothing is signed.
        payloads: The signed bytes of each; empty where nothing is signed.
    """

    statements: tuple[dict[str, Any], ...]
    bundles: tuple[dict[str, Any], ...] = ()
    payloads: tuple[bytes, ...] = ()


def attested_record(record: AuditRecord) -> dict[str, Any]:
    """Return the predicate of our own type: figures to read, and the record to judge again."""
    verdict = record.verdict
    if verdict is None:
        raise RecordError("an attestation is of a verdict, and this record has none")
    kept = record.model_copy(update=dict.fromkeys(LEFT_OUT))
    return {
        "verdict": _verdict(record),
        "policySha256": verdict.policy_sha256,
        "figures": _rows(record),
        "leftOut": [name for name in LEFT_OUT if getattr(record, name) is not None],
        "recordContentSha256": sealed(record)["content_sha256"],
        "record": sealed(kept),
    }


@reads(RecordError)
def is_attestation(path: Path) -> bool:
    """Return whether a file holds statements or bundles, and no record.

    Raises:
        RecordError: It cannot be read.
    """
    documents = _documents(path)
    first = documents[0] if documents else None
    return isinstance(first, dict) and ("_type" in first or "dsseEnvelope" in first)


def is_signed(path: Path) -> bool:
    """Return whether a file is an attestation with signatures inside; none of them is checked.

    Raises:
        RecordError: It cannot be read.
    """
    return is_attestation(path) and bool(read_attestation(path).bundles)


@reads(RecordError)
def read_attested(path: Path) -> AnyDocument:
    """Read a record, or the one that an attestation holds; no signature is checked.

    Raises:
        RecordError: As for `read_record` and `read_attestation`.
    """
    if not is_attestation(path):
        return read_record(path)
    return _record_in(read_attestation(path), path)


@reads(RecordError)
def read_attestation(path: Path) -> Attestation:
    """Read statements or bundles; what they say must agree with the record in them.

    Raises:
        RecordError: It is something else, has other statements than ours, or they contradict the
            record or each other.
    """
    documents = _documents(path)
    bundled = [isinstance(d, dict) and "dsseEnvelope" in d for d in documents]
    if any(bundled) != all(bundled):
        raise RecordError(f"{path}: some of its statements are signed and some are not")
    payloads: list[bytes] = []
    statements = documents
    if any(bundled):
        payloads = [_payload(document, path) for document in documents]
        statements = [
            parse_json(
                decode_text(payload, where=str(path), what="a statement", error=RecordError),
                where=str(path),
                what="a statement",
                error=RecordError,
            )
            for payload in payloads
        ]
    for statement in statements:
        if not isinstance(statement, dict) or statement.get("_type") != STATEMENT:
            raise RecordError(f"{path}: expected in-toto statements ({STATEMENT})")
    found = Attestation(
        tuple(statements), tuple(documents) if any(bundled) else (), tuple(payloads)
    )
    _record_in(found, path)
    return found


def _record_in(attestation: Attestation, path: Path) -> AuditRecord:
    """Take the record out, and hold everything beside it against it."""
    types = [statement.get("predicateType") for statement in attestation.statements]
    for kind in types:
        if kind not in (AUDIT, TEST_RESULT):
            raise RecordError(
                f"{path}: expected the statements that --report intoto writes, got one of type "
                f"{kind!r}"
            )
    if types.count(AUDIT) != 1 or types.count(TEST_RESULT) > 1:
        raise RecordError(
            f"{path}: expected one statement of type {AUDIT}, and at most one test result"
        )
    predicate = attestation.statements[types.index(AUDIT)].get("predicate")
    if not isinstance(predicate, dict):
        raise RecordError(f"{path}: its statement has no predicate")
    record = parse_record(predicate.get("record"), str(path))
    if not isinstance(record, AuditRecord) or record.verdict is None:
        raise RecordError(f"{path}: expected the record of a judged audit in the statement")
    if predicate.get("verdict") != _verdict(record):
        raise RecordError(f"{path}: the verdict beside the record is not the record's")
    own = _rows(record)
    if any(row not in own for row in predicate.get("figures", ())):
        raise RecordError(f"{path}: a figure beside the record is not the record's")
    for kind, statement in zip(types, attestation.statements, strict=True):
        _check_subject(statement, record, path)
        if kind == TEST_RESULT:
            _check_result(statement, record, path)
    return record


def _check_subject(statement: dict[str, Any], record: AuditRecord, path: Path) -> None:
    """A statement must be about the files that were audited, about all of them and no other."""
    try:
        digests = [subject["digest"] for subject in statement["subject"]]
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: a statement does not name its files by digest") from error
    audited = [{"sha256": file.sha256} for file in record.files_of("defended")]
    if not audited or sorted(map(str, digests)) != sorted(map(str, audited)):
        raise RecordError(f"{path}: a statement is about other files than the record in it")


def _check_result(statement: dict[str, Any], record: AuditRecord, path: Path) -> None:
    predicate = statement.get("predicate")
    result = predicate.get("result") if isinstance(predicate, dict) else None
    allowed = ("PASSED", "WARNED") if release_of(record) == "pass" else ("FAILED",)
    if result not in allowed:
        raise RecordError(
            f"{path}: the test result {result!r} does not follow from the record, whose release "
            f"is {release_of(record)!r}"
        )


def _verdict(record: AuditRecord) -> dict[str, Any]:
    assert record.verdict is not None
    return {
        "outcome": record.verdict.outcome,
        "release": release_of(record),
        "why": record.verdict.why,
        "trigger": {
            "sha256": record.trigger.sha256,
            "targetLabel": record.trigger.target_label,
            "recovered": record.trigger.recovered,
        },
    }


def _rows(record: AuditRecord) -> list[dict[str, Any]]:
    return [figure.model_dump(mode="json", exclude_none=True) for figure in list_figures(record)]


def _documents(path: Path) -> list[Any]:
    """Parse a file that is one JSON document, or one a line."""
    text = read_text(path, what=_WHAT, error=RecordError, limit=RECORD_BYTES)
    lines = [line for line in text.splitlines() if line.strip()]
    first = lines[0].strip() if lines else ""
    # One document that is spread over lines begins with a line that is no document.
    parts = lines if first.startswith("{") and first.endswith("}") else [text]
    return [parse_json(part, where=str(path), what=_WHAT, error=RecordError) for part in parts]


def _payload(bundle: Any, path: Path) -> bytes:
    try:
        envelope = bundle["dsseEnvelope"]
        kind, payload = envelope["payloadType"], envelope["payload"]
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: a bundle has no whole DSSE envelope") from error
    if kind != PAYLOAD:
        raise RecordError(f"{path}: expected a payload of type {PAYLOAD}, got {kind!r}")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RecordError(f"{path}: the payload of a bundle is not base64") from error
