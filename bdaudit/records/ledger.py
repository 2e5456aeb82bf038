"""A folder of records, years later: what of each is still there and still holds."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from bdaudit.records.base import Outcome, Record, Release

__all__ = ["LedgerEntry", "LedgerFile", "LedgerRecord"]


class LedgerFile(Record):
    """A file that an audit read.

    Attributes:
        state: `there`: with the recorded digest; `changed`; `missing`; or `elsewhere`: at an
            address, which is not fetched.
    """

    role: str
    path: str
    state: Literal["there", "changed", "missing", "elsewhere"]


class LedgerEntry(Record):
    """One record, as it is today.

    Attributes:
        path: Relative to the folder.
        sha256: Digest of the record's file.
        unreadable: Why it cannot be read; all below is then empty.
        created: When it was sealed.
        bdaudit: The version that wrote it.
        model: The candidate.
        backdoor: Trigger digest and target.
        outcome: As it was recorded.
        release: As it was recorded.
        signature: `valid` by the key that was given, `invalid`, `unchecked` where there is one and
            no key was given, or `none`.
        files: Of the audit.
        versions: Packages whose version today is another, in words.
        limits: Whether today's limits are those it was judged by.
        follows: Whether the recorded verdict follows from the recorded figures and limits.
        today: The outcome under today's limits.
        release_today: What becomes of a release under them.
        changes: Whether either would be another.
        why_today: The reason, where it is another.
    """

    path: str
    sha256: str | None = None
    unreadable: str | None = None
    created: datetime | None = None
    bdaudit: str | None = None
    model: str | None = None
    backdoor: str | None = None
    outcome: Outcome | None = None
    release: Release | None = None
    signature: Literal["valid", "invalid", "unchecked", "none"] = "none"
    files: tuple[LedgerFile, ...] = ()
    versions: tuple[str, ...] = ()
    limits: Literal["same", "changed", "unknown"] = "unknown"
    follows: bool | None = None
    today: Outcome | None = None
    release_today: Release | None = None
    changes: bool = False
    why_today: str | None = None

    def count(self, state: str) -> int:
        """Return how many of the audit's files are in `state`."""
        return sum(file.state == state for file in self.files)

    @property
    def objections(self) -> tuple[str, ...]:
        """Everything that speaks against the record, or against releasing by it today."""
        found = []
        if self.unreadable is not None:
            found.append(f"cannot be read: {self.unreadable}")
        found += [f"{f.role} {f.path} changed" for f in self.files if f.state == "changed"]
        if self.signature == "invalid":
            found.append("has no valid signature by the key")
        if self.follows is False:
            found.append("its verdict does not follow from its own figures and limits")
        if self.changes:
            found.append(
                f"was {self.outcome} ({self.release}), would be {self.today} "
                f"({self.release_today}) under today's limits"
            )
        return tuple(found)


class LedgerRecord(Record):
    """All records below a folder.

    Attributes:
        folder: The folder.
        policy_source: Where today's limits are from.
        policy_sha256: Digest over them.
        version: The bdaudit that looked.
        entries: The records, oldest first; those that cannot be read before them.
        skipped: JSON files that are no records of audits.
    """

    kind: Literal["ledger"] = "ledger"
    folder: str
    policy_source: str
    policy_sha256: str
    version: str
    entries: tuple[LedgerEntry, ...]
    skipped: int
