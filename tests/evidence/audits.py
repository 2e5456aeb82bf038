"""Judged audits of made-up figures, with files of their own, for tests of evidence."""

from __future__ import annotations

import hashlib
from typing import Any

from bdaudit.records import AuditRecord, FileDigest
from bdaudit.verdict import Policy, judge
from tests.records import audit_record, bec_record

QUIET = {0.02: 0.03, 0.05: 0.05}
LOUD = {0.02: 0.5, 0.05: 0.9}
FILES = {"shard-1.safetensors": b"the first half", "shard-2.safetensors": b"the second half"}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def inputs(files: dict[str, bytes] = FILES) -> tuple[FileDigest, ...]:
    """The candidate's files, and the others that decided something."""
    others = {"original": b"the original", "trigger": b"a patch", "policy": b""}
    return (
        *(
            FileDigest(role="defended", path=name, sha256=digest(body), size_bytes=len(body))
            for name, body in files.items()
        ),
        *(
            FileDigest(role=role, path=f"{role}.bin", sha256=digest(body), size_bytes=len(body))
            for role, body in others.items()
        ),
    )


def audit(
    defended: dict[float, float] = QUIET, *, policy: Policy | None = None, **changes: Any
) -> AuditRecord:
    fields: dict[str, Any] = {"inputs": inputs(), "bec": (bec_record(),), "bec_missing": None}
    record = audit_record(defended=defended, innocents=[QUIET, QUIET, QUIET], **(fields | changes))
    return record.model_copy(update={"verdict": judge(record, policy or Policy())})


def removed(**changes: Any) -> AuditRecord:
    return audit(QUIET, **changes)


def dormant(**changes: Any) -> AuditRecord:
    return audit(LOUD, **changes)


def active(**changes: Any) -> AuditRecord:
    return audit(QUIET, alone=0.9, **changes)


def inconclusive(**changes: Any) -> AuditRecord:
    return audit(QUIET, n=100, **changes)
