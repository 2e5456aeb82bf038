"""A comparison on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bdaudit.records import Comparison
from bdaudit.records.comparison import ComparedModel, ComparisonRecord, Neighbour
from bdaudit.report.chart import Line, draw_chart
from bdaudit.report.tables import Column, FittedTable
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import norm_name, number, points, share

__all__ = ["print_comparison"]

_STYLES = {"removed": "green", "dormant": "red", "active": "red", "inconclusive": "yellow"}


def print_comparison(made: ComparisonRecord, console: Console) -> None:
    """Print `made` on `console`, fitted to its width."""
    made = shown(made)
    title = f"Defended versions of one original  {made.attack}, {norm_name(made.norm)} {made.eps:g}"
    console.print(Text(title, style="bold"))
    figures = ("clean", "alone", "woken", "lift", "bounds", "BEC", "barrier", "half way")
    # Of transformers alone.
    directed = any(model.direction is not None for model in made.models)
    more = ("fidelity", "when woken", *(["direction"] if directed else []))
    table = FittedTable("model", Column("verdict", text=True), *figures, *more)
    for model in made.models:
        table.add_row(*_cells(model), *([number(model.direction)] if directed else []))
    for neighbour in (made.original, made.innocent):
        if neighbour is not None:
            table.add_row(*_neighbour_cells(neighbour), *([""] if directed else []), style="dim")
    console.print(table)
    if any(model.bec is not None for model in made.models):
        console.print(Text("ASR against BEC", style="bold"))
        console.print(_chart(made, console))
    for warning in made.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))


def _cells(model: ComparedModel) -> list[Text | str]:
    outcome = model.outcome or "not judged"
    lift, bec = model.lift, model.bec
    span = "-"
    if bec is not None:
        span = f"{bec.middle:.2f}"
        if bec.low != bec.high:
            span = f"{bec.low:.2f}-{bec.high:.2f}"
    return [
        model.name,
        Text(outcome, style=_STYLES.get(outcome, "")),
        share(model.clean_acc),
        share(model.asr),
        share(model.reactivated),
        "-" if lift is None else points(lift.value),
        "-" if lift is None else _bounds(lift),
        span,
        number(model.barrier),
        "-" if model.asr_half_way is None else f"{100 * model.asr_half_way:.1f}%",
        number(model.fidelity),
        number(model.fidelity_reactivated),
    ]


def _bounds(lift: Comparison) -> str:
    if lift.low is None or lift.high is None:
        return "-"
    return f"{100 * lift.low:+.0f}..{100 * lift.high:+.0f}"


def _neighbour_cells(neighbour: Neighbour) -> list[str]:
    return [
        neighbour.name.removesuffix(" models"),
        "",
        "",
        _range(neighbour.asr, neighbour.asr_high),
        _range(neighbour.reactivated, neighbour.reactivated_high),
        "",
        "",
        f"{neighbour.bec:g}",
        *[""] * 4,
    ]


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    if low == high:
        return f"{100 * low:.1f}%"
    return f"{100 * low:.1f}-{100 * high:.1f}%"


def _chart(made: ComparisonRecord, console: Console) -> Text:
    """Draw a pair of points a model where its BEC puts it, between innocents and the original."""
    ascii_only = not console.encoding.lower().startswith("utf")
    points: list[tuple[float, str, float | None, float | None]] = [
        (m.bec.middle, "defended", m.asr.value, m.reactivated.value)
        for m in made.models
        if m.bec is not None
    ]
    for neighbour in (made.innocent, made.original):
        if neighbour is not None:
            woken = neighbour.reactivated_high
            points.append((neighbour.bec, neighbour.name, neighbour.asr_high, woken))
    points.sort(key=lambda point: point[0])

    def values(who: str, place: int) -> list[float | None]:
        return [point[place] if point[1] == who else None for point in points]  # type: ignore[misc]

    marks = ("o", "*", "x", "A") if ascii_only else ("○", "●", "◇", "□")
    plain, woken_mark, innocent, original = marks
    lines = [
        Line("innocents, re-activated", innocent, "green", values("innocent models", 3)),
        Line("original, re-activated", original, "magenta", values("original", 3)),
        Line("defended, trigger alone", plain, "blue", values("defended", 2)),
        Line("defended, re-activated", woken_mark, "bold red", values("defended", 3)),
    ]
    return draw_chart(
        [f"{point[0]:.2f}" for point in points],
        lines=[line for line in lines if any(v is not None for v in line.values)],
        width=min(console.width, 78),
        height=9,
        ascii_only=ascii_only,
        positions=[point[0] for point in points],
    )
