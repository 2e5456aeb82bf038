"""A benchmark on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bdaudit.records.benchmark import VARIANTS, BenchmarkRecord, Confusion, RocCurve
from bdaudit.report.benchmark import (
    OUTCOMES,
    SCORES,
    TRUTHS,
    areas,
    gist,
    main_variant,
    memory,
    step_costs,
)
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import share, share_with_interval

__all__ = ["print_benchmark"]

_MOST_AREAS = 12
_MOST_REASONS = 5


def print_benchmark(record: BenchmarkRecord, console: Console) -> None:
    """Print `record` on `console`, fitted to its width."""
    record = shown(record)
    n = len({case.member for case in record.cases})
    title = f"{record.family}: {n} models, {len(record.cases)} audits"
    console.print(Text(title, style="bold"))
    console.print(Text(gist(record)))
    for name, why in record.left_out.items():
        console.print(Text.assemble(("left out: ", "yellow"), f"{name} {why}"))
    for variant, found in record.confusion.items():
        console.print()
        console.print(Text(f"Verdict against truth, {VARIANTS[variant].label}", style="bold"))
        console.print(_confusion_table(found))
        for reason, count in found.reasons[:_MOST_REASONS]:
            console.print(Text.assemble(("inconclusive: ", "yellow"), f"{count} x {reason}"))
    if record.recipes:
        console.print()
        console.print(Text("The same models by other recipes", style="bold"))
        console.print(_recipes_table(record))
    best = areas(record)[:_MOST_AREAS]
    if best:
        console.print()
        console.print(Text("How well one figure tells sleeping from not", style="bold"))
        console.print(_areas_table(best))
    if record.agreements:
        console.print()
        console.print(Text("Two ways, same models", style="bold"))
        for agreement in record.agreements:
            same, opposed = agreement.same, ", ".join(agreement.opposed)
            line = (
                f"{agreement.name}: same verdict {share_with_interval(same)} of {same.total}, "
                f"opposed {opposed or 'none'}"
            )
            console.print(Text(line))
    if record.calibration is not None:
        chosen = record.calibration.policy
        console.print()
        limits = ", ".join(f"{k} {chosen[k]:g}" for k in ("lift", "saturation", "confidence"))
        console.print(Text.assemble(("Chosen limits: ", "bold"), limits))
    console.print()
    console.print(Text("Cost", style="bold"))
    console.print(_costs_table(record))
    for miss in record.misses:
        console.print(
            Text.assemble(
                ("wrong: ", "red"),
                f"{miss.case} is {TRUTHS[miss.truth]}, called {miss.outcome}",
            )
        )


def _confusion_table(found: Confusion) -> FittedTable:
    table = FittedTable("truth", *OUTCOMES)
    for truth, words in TRUTHS.items():
        counts = found.counts.get(truth)
        if counts is not None:
            table.add_row(words, *(str(counts[outcome]) for outcome in OUTCOMES))
    return table


def _recipes_table(record: BenchmarkRecord) -> FittedTable:
    table = FittedTable("says dormant when", "sleeping caught", "false alarms", "undecided")
    for recipe in record.recipes:
        limit = "" if recipe.threshold is None else f" ({recipe.threshold:.2f})"
        table.add_row(
            recipe.name + limit,
            "-" if recipe.caught is None else share_with_interval(recipe.caught),
            "-" if recipe.false_alarms is None else share_with_interval(recipe.false_alarms),
            share(recipe.undecided),
        )
    return table


def _areas_table(curves: Sequence[RocCurve]) -> FittedTable:
    table = FittedTable("figure", Column("attack", text=True), "eps", "AUC", "95 %")
    for curve in curves:
        span = (
            "-" if curve.low is None or curve.high is None else f"{curve.low:.2f}-{curve.high:.2f}"
        )
        table.add_row(
            SCORES[curve.score],
            curve.mode or "",
            "" if curve.mode is None else ("most" if curve.eps is None else f"{curve.eps:g}"),
            f"{curve.auc:.3f}",
            span,
        )
    return table


def _costs_table(record: BenchmarkRecord) -> FittedTable:
    table = FittedTable("step", "n", "median s", "total s", "peak memory")
    for cost in step_costs(record.costs, main_variant(record)):
        table.add_row(
            cost.step,
            str(cost.n),
            f"{cost.median_s:.1f}",
            f"{cost.total_s:.0f}",
            memory(cost.peak_memory_bytes),
        )
    return table
