"""A small line chart in characters: share of images against the steps of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

__all__ = ["Band", "Line", "draw_chart"]


@dataclass(frozen=True)
class Line:
    """A curve: one value in [0, 1] for each step of the ladder, `None` where not measured."""

    label: str
    marker: str
    style: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Band:
    """The span between the lowest and the highest of several curves."""

    label: str
    fill: str
    style: str
    low: Sequence[float | None]
    high: Sequence[float | None]


def draw_chart(
    ticks: Sequence[str],
    *,
    lines: Sequence[Line],
    band: Band | None = None,
    width: int,
    height: int = 11,
    ascii_only: bool = False,
    positions: Sequence[float] | None = None,
) -> Text:
    """Draw shares from 0 to 100 % over the steps of a ladder.

    Args:
        ticks: Name of each step, left to right; at least one.
        lines: Curves; a later one is drawn over an earlier one.
        band: Drawn under all lines.
        width: Columns to use, axis included.
        height: Rows of the plot; odd numbers put 50 % on a row.
        ascii_only: Draw the frame in ASCII, for terminals without box characters.
        positions: Where each step lies on the axis, rising, in any unit: the axis is then to
            scale. `None` spaces them evenly.

    Returns:
        The chart with its axis and legend, each line no longer than `width`.
    """
    left = 6
    columns = max(width - left - 2, 2 * len(ticks))
    canvas = [[(" ", "")] * columns for _ in range(height)]
    at = _tick_columns(len(ticks), columns) if positions is None else _scale(positions, columns)

    if band is not None:
        lows, highs = _interpolate(band.low, at, columns), _interpolate(band.high, at, columns)
        for column in range(columns):
            low, high = lows[column], highs[column]
            if low is None or high is None:
                continue
            for row in range(_row(high, height), _row(low, height) + 1):
                canvas[row][column] = (band.fill, band.style)
    for line in lines:
        for column, value in enumerate(_interpolate(line.values, at, columns)):
            if value is not None:
                canvas[_row(value, height)][column] = ("." if ascii_only else "·", line.style)
    for line in lines:
        for column, point in zip(at, line.values, strict=True):
            if point is not None:
                canvas[_row(point, height)][column] = (line.marker, line.style)

    bar, corner, rule = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    text = Text(no_wrap=True)
    for row in range(height):
        share = 100 * (height - 1 - row) / (height - 1)
        labelled = row % ((height - 1) // 2 or 1) == 0
        text.append(f"{share:4.0f}% " if labelled else " " * left, style="dim")
        text.append(bar, style="dim")
        for character, style in canvas[row]:
            text.append(character, style=style)
        text.append("\n")
    text.append(" " * left + corner + rule * columns + "\n", style="dim")
    text.append(_tick_line(ticks, at, left + 1, width) + "\n", style="dim")

    legend = [(line.marker, line.label, line.style) for line in lines]
    if band is not None:
        legend.append((band.fill, band.label, band.style))
    text.append(_legend(legend, width, left))
    return text


def _tick_columns(n_ticks: int, columns: int) -> list[int]:
    if n_ticks == 1:
        return [columns // 2]
    margin = 2
    span = columns - 1 - 2 * margin
    return [margin + round(k * span / (n_ticks - 1)) for k in range(n_ticks)]


def _scale(positions: Sequence[float], columns: int) -> list[int]:
    """Put steps where they lie between the first and the last of them."""
    first, last, margin = positions[0], positions[-1], 2
    if last <= first:
        return [columns // 2] * len(positions)
    span = columns - 1 - 2 * margin
    return [margin + round((at - first) / (last - first) * span) for at in positions]


def _row(share: float, height: int) -> int:
    return round((1.0 - min(max(share, 0.0), 1.0)) * (height - 1))


def _interpolate(
    values: Sequence[float | None], at: Sequence[int], columns: int
) -> list[float | None]:
    """Join measured neighbours by straight lines; leave gaps where a value is missing."""
    out: list[float | None] = [None] * columns
    for column, value in zip(at, values, strict=True):
        out[column] = value
    for (c1, v1), (c2, v2) in zip(
        zip(at, values, strict=True), list(zip(at, values, strict=True))[1:], strict=False
    ):
        if v1 is None or v2 is None:
            continue
        for column in range(c1, c2 + 1):
            weight = (column - c1) / max(c2 - c1, 1)
            out[column] = v1 + weight * (v2 - v1)
    return out


def _tick_line(ticks: Sequence[str], at: Sequence[int], offset: int, width: int) -> str:
    """Write the steps below the axis; where two would touch, the first and the last stay."""
    line = [" "] * width
    ends = {0, len(ticks) - 1}
    order = sorted(range(len(ticks)), key=lambda k: k not in ends)
    for k in order:
        tick = ticks[k]
        start = min(max(offset + at[k] - len(tick) // 2, 0), width - len(tick))
        around = line[max(start - 1, 0) : start + len(tick) + 1]
        if not any(character.strip() for character in around):
            line[start : start + len(tick)] = tick
    return "".join(line).rstrip()


def _legend(entries: Sequence[tuple[str, str, str]], width: int, left: int) -> Text:
    """Lay the legend out in as many rows as it needs."""
    text = Text(" " * left)
    used = left
    for marker, label, style in entries:
        length = 2 + len(label) + 3
        if used + length > width and used > left:
            text.append("\n" + " " * left)
            used = left
        text.append(marker, style=style)
        text.append(f" {label}   ")
        used += length
    return text
