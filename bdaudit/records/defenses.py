"""The record of `bdaudit defend`: which defences were tried, and what an audit says of each result.

Files in it are relative to the folder that it lies in.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from bdaudit.errors import RecordError, reads
from bdaudit.foundation.opening import RECORD_BYTES, read_bytes
from bdaudit.records import Environment, Outcome, Rate, Record, Release

__all__ = ["DefenseRecord", "TriedDefense", "read_defenses"]


class TriedDefense(Record):
    """One defence, and the audit of the model it gave.

    Attributes:
        method: Its name in the catalogue of defences.
        title: What people read.
        status: `audited`; or `failed`, when the defence or the audit did, and `why` says of what.
        settings: All it was run with, defaults included, flat.
        model: The defended model's file, `None` where there is none.
        model_sha256: Of that file.
        record: The audit's record.
        outcome: The audit's.
        release: What the policy makes of it.
        why: The verdict's sentence, or the reason of the failure.
        warnings: What the verdict warns of, such as relearning that tells otherwise.
        clean_acc: Of the defended model, on the audit's held-out images.
        asr: Of the trigger alone, likewise.
        made_of: Everything that determined the model, by name: digests and settings.
        audited_by: The same of the audit.
        kept: What an earlier run had done already: nothing, the model, or the audit as well.
        changes: What is other than in the earlier run, and so was done again.
        defense_s: Seconds of the defence, when it was run.
        audit_s: Seconds of the audit, when it was run.
    """

    method: str
    title: str
    status: Literal["audited", "failed"]
    settings: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    model_sha256: str | None = None
    record: str | None = None
    outcome: Outcome | None = None
    release: Release | None = None
    why: str
    warnings: tuple[str, ...] = ()
    clean_acc: Rate | None = None
    asr: Rate | None = None
    made_of: dict[str, str] = Field(default_factory=dict)
    audited_by: dict[str, str] = Field(default_factory=dict)
    kept: Literal["nothing", "model", "audit"] = "nothing"
    changes: tuple[str, ...] = ()
    defense_s: float | None = None
    audit_s: float | None = None


class DefenseRecord(Record):
    """All of `defend.json`.

    Attributes:
        outcome: Whether the first of the ranking may be released: `pass`, `fail`, or
            `inconclusive`, which is not a pass either.
        why: One sentence.
        tried: The defences, best first: those that may be released before inconclusive ones before
            those in which the backdoor sleeps or works, then by clean accuracy; failed ones last.
        best: File of the best model, where it may be released.
        trigger_recovered: Whether the trigger was looked for and not given.
        search: What the search for it said, in a sentence.
        original_clean_acc: Of the original, on the audit's held-out images.
        n_defender: Clean images the defences had.
        n_auditor: Clean images the audits had; none of the former.
    """

    schema_version: Literal[1] = 1
    kind: Literal["defenses"] = "defenses"
    created: datetime
    command: tuple[str, ...] | None = None
    seed: int
    outcome: Release
    why: str
    tried: tuple[TriedDefense, ...]
    best: str | None = None
    trigger_recovered: bool
    search: str | None = None
    original_clean_acc: Rate | None = None
    n_defender: int
    n_auditor: int
    environment: Environment
    elapsed_s: float


@reads(RecordError)
def read_defenses(path: Path) -> DefenseRecord:
    """Read a `defend.json`.

    Raises:
        RecordError: There is none, or it is not one.
    """
    content = read_bytes(path, limit=RECORD_BYTES, what="a record of defences", error=RecordError)
    try:
        return DefenseRecord.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(f"{path}: not a record of defences: {error}") from error
