"""What an audit is in the table of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Literal

from bdaudit.records import AuditRecord, Baseline
from bdaudit.records.sweeps import ReportedFigures, SweptAudit
from bdaudit.report.wording import find_decisive

__all__ = ["compare_reported", "describe_audit"]

_FIGURES = {
    "clean_acc": "clean accuracy",
    "asr": "success of the trigger alone",
    "true_label_acc": "true labels under the trigger",
}
_OTHER_IMAGES = 0.02
"""What other images of the same kind may change, beside the interval that ours leave."""


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
        true_label_acc=None if defended is None else defended.true_label_acc.value,
        mode=None if run is None else run.mode,
        eps=None if run is None else run.eps,
        reactivated_asr=None if run is None else run.asr.value,
        lift=None if lift is None else lift.value,
        bec=sum(values) / len(values) if values else None,
        elapsed_s=record.elapsed_s,
    )


def compare_reported(
    reported: Mapping[str, ReportedFigures], records: Mapping[str, AuditRecord]
) -> Iterator[str]:
    """Say where reported figures and measured ones cannot be of the same model and trigger.

    Args:
        reported: By the audit's key, and of the original under "original".
        records: By the audit's key.

    Yields:
        A sentence a model, with the figures of the original whether they agree or not, since no row
        of a sweep has them.
    """
    if (figures := reported.get("original")) is not None:
        for record in records.values():
            measured = next((b for b in record.baselines if b.role == "original"), None)
            if measured is not None:
                yield f"original: {_side_by_side(figures, measured, _known(figures))}"
                break
    for key, record in records.items():
        figures, measured = reported.get(key), record.defended
        if figures is None or measured is None:
            continue
        if apart := [name for name in _known(figures) if _is_apart(name, figures, measured)]:
            yield (
                f"{key}: {_side_by_side(figures, measured, apart)}: other images, another "
                "normalisation or another trigger than the benchmark's"
            )


def _known(figures: ReportedFigures) -> list[str]:
    return [name for name in _FIGURES if getattr(figures, name) is not None]


def _is_apart(name: str, figures: ReportedFigures, measured: Baseline) -> bool:
    rate, said = getattr(measured, name), getattr(figures, name)
    return not rate.low - _OTHER_IMAGES <= said <= rate.high + _OTHER_IMAGES


def _side_by_side(figures: ReportedFigures, measured: Baseline, names: list[str]) -> str:
    pairs = [(name, getattr(figures, name), getattr(measured, name).value) for name in names]
    said = ", ".join(
        f"{_FIGURES[name]} {told:.1%}, measured {ours:.1%}" for name, told, ours in pairs
    )
    return f"{figures.file} says {said}"
