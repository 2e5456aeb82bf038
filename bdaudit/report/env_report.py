"""The answer as `key=value` lines, for a pipeline's next steps.

What `$GITHUB_OUTPUT` takes, and GitLab's `dotenv` artifacts. No string of the record that somebody
else chose stands in it: a name with a line break could set a variable of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from bdaudit.errors import RecordError
from bdaudit.records import AuditRecord
from bdaudit.records.verdict import WAIVED
from bdaudit.report.wording import AnyRecord, find_decisive

__all__ = ["render"]


def render(record: AnyRecord) -> str:
    """Write the figures that decide, one a line; one that was not measured is left empty.

    Raises:
        RecordError: The record is not of an audit, or was not judged.
    """
    if not isinstance(record, AuditRecord) or record.verdict is None:
        raise RecordError(f"outputs are of a verdict, and this {record.kind} record has none")
    return "".join(f"{key}={value}\n" for key, value in _figures(record))


def _figures(record: AuditRecord) -> Iterator[tuple[str, str]]:
    assert record.verdict is not None
    yield "verdict", record.verdict.outcome
    yield "release", record.verdict.release or ""
    yield "waived", str(any(w.startswith(WAIVED) for w in record.verdict.warnings)).lower()
    defended = record.defended
    yield "asr", "" if defended is None else f"{defended.asr.value:.4f}"
    decisive = find_decisive(record)
    if decisive is None:
        yield from (("eps", ""), ("reactivated_asr", ""), ("lift", ""))
    else:
        run, lift = decisive
        yield "eps", f"{run.eps:g}"
        yield "reactivated_asr", f"{run.asr.value:.4f}"
        yield "lift", f"{lift.value:.4f}"
    known = [b.value for b in record.bec if b.value is not None]
    yield "score", f"{sum(known) / len(known):.4f}" if known else ""
    yield "policy_sha256", record.verdict.policy_sha256 or ""
