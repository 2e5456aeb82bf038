"""Whether a record can be made again: the same inputs, the same numbers."""

from __future__ import annotations

from typing import Literal

from bdaudit.records import Rate, Record

__all__ = ["NumberCheck", "VerificationRecord"]


class NumberCheck(Record):
    """A rate as the record has it, and as it came out now.

    Attributes:
        name: Of what.
        recorded: In the record, with its 95 % interval.
        measured: Now, on the same images.
        agrees: Whether the share measured now lies within the recorded interval.
    """

    name: str
    recorded: Rate
    measured: Rate
    agrees: bool


class VerificationRecord(Record):
    """What became of a record that was verified.

    Attributes:
        record: The file.
        record_sha256: Its digest.
        agrees: Whether nothing speaks against it.
        objections: Everything that does.
        notes: What is worth knowing and does not.
        files_checked: How many files have the digest that the record states.
        part: The attack and the control that were run again, in words; `None` when none were.
        numbers: Every rate that was measured again.
    """

    kind: Literal["verification"] = "verification"
    record: str
    record_sha256: str
    agrees: bool
    objections: tuple[str, ...]
    notes: tuple[str, ...]
    files_checked: int
    part: str | None
    numbers: tuple[NumberCheck, ...]
