"""Records as JSON files, with a digest by which an edit is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bdaudit.errors import BdauditError, RecordError, reads
from bdaudit.foundation.texts import read_json
from bdaudit.records.base import Record
from bdaudit.records.documents import (
    AnyDocument,
    AuditRecord,
    InversionRecord,
    ReactivationRecord,
    RelearnRecord,
    ScoreRecord,
    ScreenRecord,
)
from bdaudit.records.header import SCHEMA_VERSION

__all__ = [
    "demand_audit",
    "parse_record",
    "read_record",
    "read_sealed",
    "sealed",
    "to_json",
    "using_record",
]

ReadRecord = TypeVar("ReadRecord", bound=Record)

_DIGEST_KEY = "content_sha256"
_KINDS: dict[str, type[AnyDocument]] = {
    "audit": AuditRecord,
    "score": ScoreRecord,
    "reactivation": ReactivationRecord,
    "inversion": InversionRecord,
    "relearning": RelearnRecord,
    "screening": ScreenRecord,
}


_SHOWN_BY = {
    "comparison": "bdaudit compare",
    "difference": "bdaudit diff",
    "gate": "bdaudit gate",
    "benchmark": "bdaudit bench",
    "defenses": "bdaudit defend",
    "sweep": "bdaudit sweep",
    "ledger": "bdaudit verify FOLDER",
    "verification": "bdaudit verify",
}
"""What else bdaudit writes as JSON, by kind, and which command wrote it."""


def content_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a record without its own digest, however it was indented."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Record) -> dict[str, Any]:
    """Return `record` as JSON holds it; the last key is a digest over all others.

    An edit is found by it.
    """
    document: dict[str, Any] = record.model_dump(mode="json")
    document[_DIGEST_KEY] = content_digest(document)
    return document


def to_json(record: Record) -> str:
    """Write `record` as indented JSON, always the same text for the same record."""
    return json.dumps(sealed(record), indent=2, allow_nan=False) + "\n"


@contextmanager
def using_record(path: Path | str) -> Iterator[None]:
    """Blame a record that was read for what its own figures make impossible.

    A record is checked field by field. One that was forged, its digest computed anew, may still
    hold figures that cannot stand side by side: rates over the same images of different length,
    counts that overflow. What judges or draws it stumbles over them in more ways than a list could
    name.

    Raises:
        RecordError: The steps inside failed over its figures.
    """
    try:
        yield
    except BdauditError:
        raise
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise RecordError(
            f"{path}: its figures contradict each other: {type(error).__name__}: {error}"
        ) from error


@reads(RecordError)
def read_record(path: Path) -> AnyDocument:
    """Read a record that `to_json` wrote.

    Raises:
        RecordError: The file is missing, not JSON, of a newer schema, not a bdaudit record, or
            was edited since it was written.
    """
    document = read_json(path, what="the JSON that --json writes", error=RecordError)
    return parse_record(document, str(path))


@reads(RecordError)
def read_sealed(path: Path, kind: type[ReadRecord], *, what: str) -> ReadRecord:
    """Read the JSON of a record that is no audit's.

    Args:
        path: What was written.
        kind: Of the record.
        what: In words, for messages.

    Raises:
        RecordError: It cannot be read, or is something else.
    """
    document = read_json(path, what=what, error=RecordError)
    if isinstance(document, dict):
        document.pop("content_sha256", None)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise RecordError(f"{path}: expected {what}, got {error.error_count()} problems") from error


def demand_audit(document: AnyDocument, path: Path) -> AuditRecord:
    """Return a record that was read, if it is that of an audit.

    Raises:
        RecordError: It is another kind of record.
    """
    if not isinstance(document, AuditRecord):
        raise RecordError(
            f"{path}: expected the record of an audit, got one of kind {document.kind!r}"
        )
    return document


def parse_record(document: object, path: str) -> AnyDocument:
    """Check what the JSON of a record holds, its digest included.

    Args:
        document: As it was parsed.
        path: Named in errors.

    Raises:
        RecordError: As for `read_record`.
    """
    if not isinstance(document, dict) or "kind" not in document:
        raise RecordError(f"{path}: not a bdaudit record (no known 'kind' in it)")
    kind = document["kind"]
    if isinstance(kind, str) and kind in _SHOWN_BY:
        raise RecordError(
            f"{path}: is what {_SHOWN_BY[kind]} wrote ({kind}); expected the record of one audit "
            "or measurement, such as bdaudit audit --json writes"
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: record of schema version {version!r}, this bdaudit reads {SCHEMA_VERSION}; "
            "use the version of bdaudit that wrote it, or a newer one"
        )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RecordError(f"{path}: not a bdaudit record (no known 'kind' in it)")
    document = dict(document)
    stated = document.pop(_DIGEST_KEY, None)
    if stated is None:
        raise RecordError(f"{path}: has no digest of its own content: edited, or cut short")
    try:
        record = _KINDS[kind].model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(
            f"{path}: damaged or edited record, at {where}: {first['msg']}"
        ) from error
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    if content_digest(document) != stated:
        raise RecordError(
            f"{path}: was edited since it was written: its content does not match its own digest"
        )
    return record
