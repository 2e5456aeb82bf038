"""What an audit is in the table of a sweep."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from bdaudit.records import AuditRecord
from bdaudit.records.sweeps import SweptAudit
from bdaudit.report.wording import find_decisive

__all__ = ["describe_audit"]


def describe_audit(
    key: str, record: AuditRecord, *, file: PurePath, status: Literal["done", "kept"]
) -> SweptAudit:
    """Put the figures of a record that was judged into one line.

    Args:
        key: Of the audit.
        record: Of the audit.
        file: Where the record is, relative to the sweep's folder.
        status: Whether it was made now.
    """
    assert record.verdict is not None
    defended = record.defended
    decisive = find_decisive(record)
    run, lift = (None, None) if decisive is None else decisive
    values = [bec.value for bec in record.bec if bec.value is not None]
    return SweptAudit(
        key=key,
        status=status,
        record=file.as_posix(),
        outcome=record.verdict.outcome,
        release=record.verdict.release,
        why=record.verdict.why,
        clean_acc=None if defended is None else defended.clean_acc.value,
        asr=None if defended is None else defended.asr.value,
        mode=None if run is None else run.mode,
        eps=None if run is None else run.eps,
        reactivated_asr=None if run is None else run.asr.value,
        lift=None if lift is None else lift.value,
        bec=sum(values) / len(values) if values else None,
        elapsed_s=record.elapsed_s,
    )
