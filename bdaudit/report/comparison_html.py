"""A comparison as one self-contained HTML file, with ASR against BEC as its picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bdaudit.records.comparison import ComparedModel, ComparisonRecord, Neighbour
from bdaudit.report.drawing import PAINTS, Picture, draw
from bdaudit.report.page import render_page
from bdaudit.report.untrusted import shown
from bdaudit.report.wording import norm_name, share

__all__ = ["render"]

_LETTERS = 16
"""Of a model's name in a line of the picture; longer names are folded."""
_MIDDLE = 0.5
_HIGH = 0.8
"""Above it a name of several lines hangs down from its mark, or its top would be cut."""
_PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")


def render(made: ComparisonRecord) -> str:
    """Write `made` as a page that works offline and printed."""
    made = shown(made)
    drawn = [model for model in made.models if model.bec is not None]
    return render_page(
        "comparison.html.j2",
        made=made,
        gist=_gist(made.models),
        figure_of=_draw(made, drawn) if drawn else None,
        not_drawn=[model for model in made.models if model.bec is None],
        directed=any(model.direction is not None for model in made.models),
        norm_name=norm_name,
    )


def _gist(models: Sequence[ComparedModel]) -> str:
    parts = []
    for outcome, what in (
        ("removed", "no sign of the backdoor in"),
        ("inconclusive", "no answer for"),
        (None, "not judged:"),
        ("dormant", "asleep in"),
        ("active", "still working in"),
    ):
        names = [model.name for model in models if model.outcome == outcome]
        if names:
            parts.append(f"{what} {', '.join(names)}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _draw(made: ComparisonRecord, drawn: Sequence[ComparedModel]) -> Picture:
    """One point a model for the trigger alone, one re-activated, joined by a line."""

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(_PER_CENT)
        axes.set_ylabel("taken to the target")
        axes.set_xlabel("backdoor existence coefficient (BEC)")
        for neighbour, paint in ((made.original, "original"), (made.innocent, "reference")):
            if neighbour is not None:
                _plot_neighbour(axes, neighbour, paint)
        for model in drawn:
            _plot_model(axes, model, first=model is drawn[0])
        axes.margins(x=0.12)
        shape = {"ncols": 2 if narrow else 4}
        figure.legend(loc="outside lower center", **shape)

    described = "; ".join(
        f"{m.name}: BEC {m.bec.middle:.2f}, trigger alone {share(m.asr)}, "
        f"re-activated {share(m.reactivated)}"
        for m in drawn
        if m.bec is not None
    )
    return draw(
        "comparison",
        "Share of held-out images taken to the target against BEC, a pair of points a model",
        f"{described}.",
        plot,
        height=4.4,
        narrow_height=4.6,
    )


def _plot_model(axes: Axes, model: ComparedModel, *, first: bool) -> None:
    assert model.bec is not None
    x = model.bec.middle
    spread = [[x - model.bec.low], [model.bec.high - x]]
    color = PAINTS["defended"]
    axes.plot([x, x], [model.asr.value, model.reactivated.value], color=color, linewidth=1.0)
    for rate, face, label in (
        (model.asr, "none", "defended, trigger alone"),
        (model.reactivated, color, "defended, re-activated"),
    ):
        axes.errorbar(
            [x],
            [rate.value],
            yerr=[[rate.value - rate.low], [rate.high - rate.value]],
            xerr=spread if face != "none" else None,
            marker="o",
            markersize=7,
            markerfacecolor=face,
            markeredgecolor=color,
            color=color,
            linestyle="none",
            elinewidth=1.0,
            label=label if first else None,
            zorder=4,
        )
    left = x > _MIDDLE
    top = max(model.reactivated.value, model.asr.value)
    high = top > _HIGH
    note = axes.annotate(
        textwrap.fill(model.name, _LETTERS),
        xy=(x, top),
        xytext=(-6 if left else 6, -6 if high else 5),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top" if high else "center",
        zorder=5,
    )
    note.set_in_layout(False)  # a long name must not squeeze the axes


def _plot_neighbour(axes: Axes, neighbour: Neighbour, paint: str) -> None:
    marker = {"original": "s", "reference": "D"}[paint]
    for low, high, face in (
        (neighbour.asr, neighbour.asr_high, "none"),
        (neighbour.reactivated, neighbour.reactivated_high, PAINTS[paint]),
    ):
        if low is None or high is None:
            continue
        middle = (low + high) / 2
        axes.errorbar(
            [neighbour.bec],
            [middle],
            yerr=[[middle - low], [high - middle]],
            marker=marker,
            markersize=6,
            markerfacecolor=face,
            markeredgecolor=PAINTS[paint],
            color=PAINTS[paint],
            linestyle="none",
            elinewidth=1.4,
            capsize=3,
            label=neighbour.name if face != "none" else None,
            zorder=3,
        )
