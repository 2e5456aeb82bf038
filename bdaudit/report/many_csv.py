"""Many models as CSV, one a row: a comparison, a sweep, a benchmark, the defences that were tried.

Of two audits one figure or input a row.

Shares are fractions; what was not measured is empty.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from bdaudit.records import Rate
from bdaudit.records.benchmark import BenchmarkRecord
from bdaudit.records.comparison import ComparisonRecord
from bdaudit.records.defenses import DefenseRecord
from bdaudit.records.difference import ChangedFigure, DifferenceRecord, Measured
from bdaudit.records.sweeps import SweepRecord
from bdaudit.report.untrusted import csv_cell, shown

__all__ = ["benchmark_csv", "comparison_csv", "defenses_csv", "difference_csv", "sweep_csv"]


def comparison_csv(made: ComparisonRecord) -> str:
    """Write the models that were compared, the best first."""
    made = shown(made)
    head = ("model", "record", "verdict", "release", "mode", "norm", "eps", "clean_acc")
    figures = ("clean_acc_loss", "asr", "reactivated_asr", "delta_only", "lift", "lift_low")
    own = ("barrier", "asr_half_way", "direction", "fidelity", "fidelity_reactivated")
    return _write(
        (*head, *figures, "lift_high", "bec_low", "bec", "bec_high", *own),
        (
            (
                *(m.name, m.record, m.outcome, m.release, made.mode, made.norm, made.eps),
                *(m.clean_acc, m.clean_acc_loss, m.asr, m.reactivated, m.delta_only),
                *((None,) * 3 if m.lift is None else (m.lift.value, m.lift.low, m.lift.high)),
                *((None,) * 3 if m.bec is None else (m.bec.low, m.bec.middle, m.bec.high)),
                *(getattr(m, name) for name in own),
            )
            for m in made.models
        ),
    )


def sweep_csv(made: SweepRecord) -> str:
    """Write the audits of a sweep in the order they were asked for."""
    made = shown(made)
    names = (
        *("key", "status", "record", "outcome", "release", "clean_acc", "asr", "mode", "eps"),
        *("reactivated_asr", "lift", "bec", "elapsed_s", "why", "true_label_acc"),
    )
    said = ("file", "clean_acc", "asr", "true_label_acc")
    return _write(
        (*names, *(f"reported_{name}" for name in said)),
        (
            [getattr(audit, name) for name in names]
            + [getattr(audit.reported, name, None) for name in said]
            for audit in made.audits
        ),
    )


def defenses_csv(record: DefenseRecord) -> str:
    """Write the defences that were tried, the best first."""
    record = shown(record)
    names = (
        *("method", "title", "status", "outcome", "release", "clean_acc", "asr", "defense_s"),
        *("audit_s", "kept", "model", "model_sha256", "record", "why"),
    )
    return _write(names, ([getattr(row, name) for name in names] for row in record.tried))


def benchmark_csv(record: BenchmarkRecord) -> str:
    """Write every audit of a benchmark beside what the model is known to be."""
    record = shown(record)
    names = (
        *("member", "variant", "original", "attack", "defense", "truth", "outcome", "clean_acc"),
        *("original_asr", "asr", "bec", "why"),
    )
    return _write(names, ([getattr(case, name) for name in names] for case in record.cases))


def difference_csv(made: DifferenceRecord) -> str:
    """Write what became of the verdict, then the figures, then all inputs."""
    made = shown(made)
    head = ("kind", "name", "mode", "objective", "norm", "eps", "against", "old", "old_low")
    figures = ("old_high", "new", "new_low", "new_high", "difference", "low", "high", "paired")
    old, new = made.old, made.new
    blank = (None,) * 4
    plain = [
        ("outcome", "outcome", old.outcome, new.outcome, made.change),
        ("release", "release", old.release, new.release, made.change),
        *((i.kind, i.name, i.old, i.new, "changed" if i.changed else "same") for i in made.inputs),
    ]
    written = [
        (kind, name, *blank, None, before, None, None, after, *(None,) * 6, change)
        for kind, name, before, after, change in plain
    ]
    rows = [*written[:2], *(_figure_row(figure) for figure in made.figures), *written[2:]]
    return _write((*head, *figures, "change"), rows)


def _figure_row(figure: ChangedFigure) -> tuple[object, ...]:
    def three(measured: Measured | None) -> tuple[object, ...]:
        if measured is None:
            return (None,) * 3
        return measured.value, measured.low, measured.high

    return (
        *("figure", figure.name, figure.mode, figure.objective, figure.norm, figure.eps),
        *(figure.against, *three(figure.old), *three(figure.new), figure.difference),
        *(figure.low, figure.high, str(figure.paired).lower(), figure.change),
    )


def _write(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, Rate):
        return f"{value.value:.6g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return csv_cell(value) if isinstance(value, str) else value
