"""The curves as CSV: one measured share a row, for a spreadsheet or a plot of one's own."""

from __future__ import annotations

import csv
import io

from bdaudit.records import AttackRun, AuditRecord, Rate, ReactivationRecord
from bdaudit.records.verdict import WAIVED
from bdaudit.report.curves import list_attacks
from bdaudit.report.release import about_policy
from bdaudit.report.untrusted import csv_cell
from bdaudit.report.wording import AnyRecord

__all__ = ["COLUMNS", "render"]

COLUMNS = (
    "attack", "objective", "norm", "model", "curve", "eps", "image_queries",
    "successes", "total", "share", "low", "high", "verdict", "release", "policy", "waiver",
)  # fmt: skip
"""`curve` is a model's part, or a control; shares are fractions, with 95 % Wilson intervals. The
last four are the record's own, the same in each row; `waiver` is empty where none was needed."""


def render(record: AnyRecord) -> str:
    """Write every curve of `record`; eps 0 is no perturbation at all."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(COLUMNS)
    verdict = record.verdict if isinstance(record, AuditRecord) else None
    end: list[object] = [""] * 4
    if verdict is not None:
        end = [verdict.outcome, verdict.release or "", csv_cell(about_policy(verdict))]
        end.append(csv_cell("; ".join(w for w in verdict.warnings if w.startswith(WAIVED))))
    runs = record.runs if isinstance(record, AuditRecord | ReactivationRecord) else ()
    for baseline in record.baselines:
        rows.writerow(
            [
                "none",
                "",
                "",
                csv_cell(baseline.model),
                baseline.role,
                0,
                "",
                *_rate(baseline.asr),
                *end,
            ]
        )
    for attack in list_attacks(runs, record.baselines):
        head = [attack.mode, attack.objective, attack.norm]
        for curve in attack.curves:
            for eps, rate in curve.by_eps.items():
                queries = _queries(runs, attack.mode, curve.model, eps, curve.kind)
                rows.writerow(
                    [*head, csv_cell(curve.model), curve.kind, eps, queries, *_rate(rate), *end]
                )
    for run in runs:
        for point in run.query_curve:
            rows.writerow(
                [
                    run.mode,
                    run.objective,
                    run.norm,
                    csv_cell(run.model),
                    f"{run.condition} by queries",
                    run.eps,
                    point.n_queries,
                    *_rate(point.asr),
                    *end,
                ]
            )
    return stream.getvalue()


def _queries(
    runs: tuple[AttackRun, ...], mode: str, model: str, eps: float, kind: str
) -> int | str:
    """Images asked about for a point of a curve, empty where none were."""
    condition = kind if kind in ("no_trigger", "wrong_target", "noise") else "trigger"
    for run in runs:
        if (run.mode, run.model, run.eps, run.condition) == (mode, model, eps, condition):
            return run.image_queries or ""
    return ""


def _rate(rate: Rate) -> list[object]:
    figures = [f"{value:.6g}" for value in (rate.value, rate.low, rate.high)]
    return [rate.successes, rate.total, *figures]
