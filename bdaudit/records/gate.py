"""A release decision."""

from __future__ import annotations

from typing import Literal

from bdaudit.records import FileDigest, Record, Release, Verdict

__all__ = ["GateRecord"]


class GateRecord(Record):
    """A release decision.

    Attributes:
        record: The audit's record that was judged.
        record_sha256: Digest of that file.
        files: What is to be released, as it was found.
        verdict: The verdict by the gate's policy.
        release: `pass`, `fail` or `inconclusive`.
        reasons: What forbids the release beside the verdict's outcome.
        warnings: What a person should read all the same.
        notes: What was left out, converted or guessed when the audit's inputs were read.
    """

    kind: Literal["gate"] = "gate"
    record: str
    record_sha256: str
    files: tuple[FileDigest, ...]
    verdict: Verdict
    release: Release
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
