"""Everything a benchmark says, from the audits and the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bdaudit.benchmarking.cases import Audited, describe_case
from bdaudit.benchmarking.confusion import count_verdicts, hold_together, list_misses, outcome_of
from bdaudit.benchmarking.curves import draw_curves
from bdaudit.benchmarking.recipes import compare_recipes
from bdaudit.foundation.modes import MODES
from bdaudit.records import Outcome
from bdaudit.records.benchmark import (
    VARIANTS,
    Agreement,
    BenchCase,
    Calibration,
    Confusion,
    Cost,
    Miss,
    Recipe,
    RocCurve,
    Variant,
)
from bdaudit.verdict import Policy

__all__ = ["Summary", "summarise"]

_DETAILS = re.compile(r",? (?:on|at|of|toward) .*|,? eps .*")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is drawn from the cases; see `BenchmarkRecord` for the fields."""

    cases: tuple[BenchCase, ...]
    confusion: dict[Variant, Confusion]
    curves: tuple[RocCurve, ...]
    recipes: tuple[Recipe, ...]
    agreements: tuple[Agreement, ...]
    costs: tuple[Cost, ...]
    misses: tuple[Miss, ...]


def summarise(
    audited: Sequence[Audited],
    policy: Policy,
    *,
    policy_source: str = "defaults",
    calibration: Calibration | None = None,
) -> Summary:
    """Judge every audit by `policy` and hold the verdicts against the truth.

    Args:
        audited: Finished and failed audits, of any variants.
        policy: Limits.
        policy_source: Where they came from.
        calibration: Where `policy` was chosen on one half of these audits: then recipes are chosen
            on that half too, and the figures of both come from the other.

    Returns:
        Curves are drawn from the white box and whatever other variants there are, recipes from
        the first variant alone.
    """
    cases = [describe_case(a, policy, policy_source=policy_source) for a in audited]
    if calibration is not None:
        cases = [_with_half(case, calibration) for case in cases]
    by_variant: dict[Variant, list[BenchCase]] = {
        variant: chosen
        for variant in VARIANTS
        if (chosen := [case for case in cases if case.variant == variant])
    }
    main = by_variant[next(iter(by_variant))] if by_variant else []
    return Summary(
        cases=tuple(cases),
        confusion={variant: count_verdicts(chosen) for variant, chosen in by_variant.items()},
        curves=draw_curves(_joined(by_variant)),
        recipes=_recipes(main),
        agreements=tuple(_agreements(by_variant)),
        costs=tuple(_costs(audited)),
        misses=list_misses(cases),
    )


def _with_half(case: BenchCase, calibration: Calibration) -> BenchCase:
    half = "calibration" if case.original in calibration.originals else "report"
    return case.model_copy(update={"half": half})


def _recipes(cases: Sequence[BenchCase]) -> tuple[Recipe, ...]:
    if not any(case.half == "report" for case in cases):
        return compare_recipes(cases)
    return compare_recipes(
        [case for case in cases if case.half == "report"],
        chosen_on=[case for case in cases if case.half == "calibration"],
    )


def _joined(by_variant: dict[Variant, list[BenchCase]]) -> list[BenchCase]:
    """Put the attacks of all modes on one model together, as one case with all points."""
    joined: dict[str, BenchCase] = {}
    for variant in MODES:
        for case in by_variant.get(variant, ()):
            known = joined.get(case.member)
            if known is None:
                joined[case.member] = case
                continue
            seen = {(p.mode, p.eps) for p in known.points}
            more = tuple(p for p in case.points if (p.mode, p.eps) not in seen)
            joined[case.member] = known.model_copy(update={"points": (*known.points, *more)})
    return list(joined.values())


def _agreements(by_variant: dict[Variant, list[BenchCase]]) -> Iterable[Agreement]:
    outcomes: dict[Variant, dict[str, Outcome]] = {
        variant: {case.member: outcome_of(case) for case in chosen}
        for variant, chosen in by_variant.items()
    }
    first = next(iter(outcomes), None)
    for variant, found in outcomes.items():
        if first is None or variant == first:
            continue
        name = f"{VARIANTS[variant].short} against {VARIANTS[first].short}"
        agreement = hold_together(name, outcomes[first], found)
        if agreement is not None:
            yield agreement


def _costs(audited: Sequence[Audited]) -> Iterable[Cost]:
    for variant in VARIANTS:
        records = [a.record for a in audited if a.variant == variant and a.record is not None]
        steps: dict[str, list[tuple[float, int | None]]] = {}
        for record in records:
            for step in record.steps:
                name = _DETAILS.sub("", step.name)
                steps.setdefault(name, []).append((step.elapsed_s, step.peak_memory_bytes))
        for name, measured in steps.items():
            seconds = [elapsed_s for elapsed_s, _ in measured]
            yield Cost(
                variant=variant,
                step=name,
                n=len(measured),
                median_s=median(seconds),
                total_s=sum(seconds),
                peak_memory_bytes=max((p for _, p in measured if p is not None), default=None),
            )
