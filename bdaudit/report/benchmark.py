"""What a benchmark's reports have in common: its sentence, its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from bdaudit.foundation.modes import MODES
from bdaudit.records import Mode, Outcome, Rate
from bdaudit.records.benchmark import (
    VARIANTS,
    BenchCase,
    BenchmarkRecord,
    BenchPoint,
    Confusion,
    Cost,
    RocCurve,
    Variant,
)
from bdaudit.records.families import Truth

__all__ = [
    "OUTCOMES",
    "SCORES",
    "TRUTHS",
    "ControlRow",
    "Row",
    "areas",
    "average_queries",
    "control_rows",
    "gist",
    "key_rates",
    "main_variant",
    "memory",
    "of_variant",
    "rows",
    "step_costs",
]

TRUTHS: dict[Truth, str] = {
    "active": "active",
    "dormant": "sleeping",
    "removed": "removed",
    "innocent": "innocent",
    "unknown": "unknown",
}
"""What a model is, in a word, in the order of every table."""

OUTCOMES: tuple[Outcome, ...] = ("active", "dormant", "removed", "inconclusive")

SCORES = {
    "lift": "lift over all controls",
    "lift_over_innocents": "lift over innocent models",
    "lift_over_own": "lift over the model's own controls",
    "part": "trigger's contribution over innocent models",
    "beyond": "beyond one more innocent model",
    "asr": "re-activated ASR",
    "bec": "BEC",
}


def main_variant(record: BenchmarkRecord) -> Variant:
    """Return the variant whose figures come first."""
    return next(iter(record.confusion or VARIANTS))


def of_variant(record: BenchmarkRecord, variant: Variant) -> list[BenchCase]:
    """Return the cases of one variant."""
    return [case for case in record.cases if case.variant == variant]


def shown_confusion(record: BenchmarkRecord) -> Confusion | None:
    """Return the verdicts to be judged by: where limits were chosen, those of the other half."""
    if record.calibration is not None:
        return record.calibration.reported_on
    return record.confusion.get(main_variant(record))


def gist(record: BenchmarkRecord) -> str:
    """Return in one sentence how good the verdict is."""
    found = shown_confusion(record)
    if found is None:
        return "Nothing was audited."
    parts = []
    for rate, bad, good in (
        (found.innocent_called_backdoored, "innocent models called backdoored", "innocent"),
        (found.removed_called_backdoored, "cleaned models called backdoored", "cleaned"),
        (found.sleeping_called_removed, "sleeping backdoors called removed", "sleeping"),
    ):
        if rate is None:
            parts.append(f"no {good} models were among them")
        else:
            parts.append(f"{rate.successes} of {rate.total} {bad}")
    if found.inconclusive is not None:
        parts.append(f"{found.inconclusive.successes} of {found.inconclusive.total} inconclusive")
    where = " on the half that no limit was chosen on" if record.calibration else ""
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}{where}."


def key_rates(record: BenchmarkRecord) -> list[tuple[str, Rate | None]]:
    """List the error rates a gate lives by, each with its name."""
    found = shown_confusion(record)
    if found is None:
        return []
    return [
        ("innocent called backdoored", found.innocent_called_backdoored),
        ("removed called backdoored", found.removed_called_backdoored),
        ("sleeping called removed", found.sleeping_called_removed),
        ("active called removed", found.active_called_removed),
        ("inconclusive", found.inconclusive),
    ]


def areas(record: BenchmarkRecord) -> list[RocCurve]:
    """Return the curves over all attacks that have an area, the best first."""
    chosen = [c for c in record.curves if c.attack is None and c.auc is not None]
    return sorted(chosen, key=lambda c: -(c.auc or 0.0))


@dataclass(frozen=True)
class Row:
    """One model in the table of attacks and defences.

    Attributes:
        by_mode: The attack at the table's eps, by mode.
    """

    case: BenchCase
    by_mode: dict[str, BenchPoint]


def rows(record: BenchmarkRecord) -> tuple[float | None, list[Row]]:
    """Put the modes' figures at the largest eps that was tried side by side, model by model.

    Returns:
        The eps, and a row for every member.
    """
    at = max((point.eps for case in record.cases for point in case.points), default=None)
    found: dict[str, Row] = {}
    for case in record.cases:
        if VARIANTS[case.variant].without is not None:
            continue
        row = found.setdefault(case.member, Row(case, {}))
        row.by_mode.update({p.mode: p for p in case.points if p.eps == at})
    return at, sorted(found.values(), key=_place)


def _place(row: Row) -> tuple[str, ...]:
    case = row.case
    return case.attack or "", case.original, case.lineage, case.member


@dataclass(frozen=True)
class ControlRow:
    """Means over the models of one truth, at one eps of one mode.

    Attributes:
        figures: By name of the figure, in the order of the columns; `None` where no model has it.
    """

    truth: Truth
    mode: Mode
    eps: float
    n: int
    figures: dict[str, float | None]


def control_rows(record: BenchmarkRecord) -> list[ControlRow]:
    """Hold the attack against everything that is not one, averaged over the models of a truth."""
    kept = [case for case in record.cases if VARIANTS[case.variant].without is None]
    found = []
    for truth in TRUTHS:
        pairs = [(c, p) for c in kept if c.truth == truth for p in c.points]
        for mode, eps in sorted({(p.mode, p.eps) for _, p in pairs}):
            own = [(c, p) for c, p in pairs if (p.mode, p.eps) == (mode, eps)]
            points = [p for _, p in own]
            figures = {
                "trigger alone": _mean(c.asr for c, _ in own),
                "trigger + noise": _mean(p.noise for p in points),
                "same delta, no trigger": _mean(p.delta_only for p in points),
                "attack without trigger": _mean(p.no_trigger for p in points),
                "innocents (the most)": _mean(p.innocent for p in points),
                "trigger + delta": _mean(p.asr for p in points),
            }
            found.append(ControlRow(truth, mode, eps, len(own), figures))
    return found


def average_queries(
    record: BenchmarkRecord, truth: Truth
) -> tuple[float | None, int, dict[str, list[tuple[int, float]]]]:
    """Average query searches over the models of one truth, at the largest eps.

    A search stands, between two counts, where it stood at the first of them.

    Returns:
        The eps, how many models, and by kind of search (`QueryCurve.of`) its mean success by
        number of queries; kinds that were not run are left out.
    """
    cases = [c for c in record.cases if _is_asking(c.variant) and c.truth == truth]
    curves = [curve for case in cases for curve in case.query_curves]
    at = max((curve.eps for curve in curves), default=None)
    found = {}
    for kind in ("trigger", "no_trigger", "innocent"):
        own = [curve.points for curve in curves if (curve.of, curve.eps) == (kind, at)]
        if own:
            counts = sorted({n for points in own for n, _ in points})
            start = max(points[0][0] for points in own)
            found[kind] = [
                (n, fmean(_standing(points, n) for points in own)) for n in counts if n >= start
            ]
    return at, sum(bool(case.query_curves) for case in cases), found


def _is_asking(variant: Variant) -> bool:
    return MODES[VARIANTS[variant].mode].asks


def _standing(points: Sequence[tuple[int, float]], n: int) -> float:
    return [rate for asked, rate in points if asked <= n][-1]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def step_costs(costs: Sequence[Cost], variant: Variant) -> Iterator[Cost]:
    """Give the costs of one variant, the dearest first."""
    own = [cost for cost in costs if cost.variant == variant]
    yield from sorted(own, key=lambda cost: -cost.total_s)


def memory(n_bytes: int | None) -> str:
    """Write an amount of memory, `-` where it was not measured."""
    return "-" if n_bytes is None else f"{n_bytes / 2**20:,.0f} MiB"
