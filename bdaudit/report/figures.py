"""The figures of the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bdaudit.records import AttackRun, BecRecord, Comparison, Rate, RelearningEvidence
from bdaudit.report.curves import Attack, Curve
from bdaudit.report.drawing import PAINTS, Picture, draw
from bdaudit.report.wording import SAME_IMAGES, norm_name

__all__ = ["draw_bec", "draw_curves", "draw_queries", "draw_relearning", "draw_tac"]

_MARKERS = {
    "defended": "o",
    "original": "s",
    "reference": None,
    "same_delta": "^",
    "no_trigger": "X",
    "wrong_target": "D",
    "noise": "v",
}
_DASHES = {
    "original": (0, (1, 1.2)),
    "same_delta": (0, (5, 1.5)),
    "no_trigger": (0, (3, 1.2, 1, 1.2)),
    "wrong_target": (0, (1, 2)),
    "noise": (0, (1, 3)),
}
_ORDER = ("noise", "wrong_target", "no_trigger", "same_delta", "original", "defended")
_MOST_LAYERS = 60
_FIRST_LAYERS = 15
_PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")


def draw_curves(attack: Attack, lift: Comparison | None, *, name: str) -> Picture:
    """Draw success against eps: the defended model, the original, innocents and controls.

    Args:
        attack: The curves.
        lift: Marked with an arrow where it belongs to this attack.
        name: Unique on the page.
    """

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        _share_axis(axes)
        axes.set_ylabel("taken to the target")
        axes.set_xlabel(f"size of the perturbation, eps ({norm_name(attack.norm)})")
        _plot_band(axes, attack.of_kind("reference"))
        for curve in sorted(_on_the_suspects(attack), key=lambda c: _ORDER.index(c.kind)):
            _plot_curve(axes, curve)
        _eps_ticks(axes, attack.ladder, narrow=narrow)
        if lift is not None:
            _mark_lift(axes, attack, lift)
        handles, labels = axes.get_legend_handles_labels()
        shape: dict[str, Any] = {"ncols": 3}
        if narrow:
            shape = {"ncols": 2, "fontsize": 8.5, "handlelength": 1.6, "columnspacing": 0.8}
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", **shape)

    return draw(
        name,
        f"Share of held-out images taken to the target, by eps ({attack.name})",
        _describe(attack),
        plot,
        height=4.1,
        narrow_height=4.6,
    )


def _on_the_suspects(attack: Attack) -> list[Curve]:
    """Leave out what the band shows, and controls on models other than the defended one."""
    defended = {curve.model for curve in attack.of_kind("defended")}
    return [c for c in attack.curves if c.model in defended or c.kind == "original"]


def _plot_band(axes: Axes, innocents: Sequence[Curve]) -> None:
    if not innocents:
        return
    columns = sorted({eps for curve in innocents for eps in _with_alone(curve)})
    low = [min(_with_alone(c)[e].value for c in innocents if e in _with_alone(c)) for e in columns]
    high = [max(_with_alone(c)[e].value for c in innocents if e in _with_alone(c)) for e in columns]
    paint = PAINTS["reference"]
    label = f"innocent models ({len(innocents)})"
    axes.fill_between(columns, low, high, color=paint, alpha=0.22, linewidth=0, label=label)
    for curve in innocents:
        rates = _with_alone(curve)
        axes.plot(list(rates), [r.value for r in rates.values()], color=paint, linewidth=0.9)


def _plot_curve(axes: Axes, curve: Curve) -> None:
    rates = _with_alone(curve)
    values = [rate.value for rate in rates.values()]
    main = curve.kind == "defended"
    axes.errorbar(
        list(rates),
        values,
        yerr=[
            [v - r.low for v, r in zip(values, rates.values(), strict=True)],
            [r.high - v for v, r in zip(values, rates.values(), strict=True)],
        ],
        color=PAINTS[curve.kind],
        marker=_MARKERS[curve.kind],
        markersize=7 if main else 5,
        linestyle=_DASHES.get(curve.kind, "-"),
        linewidth=2.4 if main else 1.4,
        elinewidth=1.6 if main else 0.9,
        capsize=3 if main else 2,
        zorder=5 if main else 3,
        label="defended model" if main else curve.label,
    )


def _with_alone(curve: Curve) -> dict[float, Rate]:
    start = {} if curve.alone is None else {0.0: curve.alone}
    return start | curve.by_eps


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(_PER_CENT)


def _eps_ticks(axes: Axes, ladder: Sequence[float], *, narrow: bool) -> None:
    """Tick every eps; label those that have room."""
    ticks = [0.0, *ladder]
    room = (0.13 if narrow else 0.07) * max(ticks)
    labels, last = [], -room
    for tick in ticks:
        # "alone" is the widest of the labels.
        least = 2.0 * room if narrow and last == 0.0 else room
        fits = tick - last >= least or tick == 0.0
        labels.append(("alone" if tick == 0.0 else f"{tick:g}") if fits else "")
        last = tick if fits else last
    axes.set_xticks(ticks, labels)


def _mark_lift(axes: Axes, attack: Attack, lift: Comparison) -> None:
    eps = lift.eps
    defended = attack.of_kind("defended")
    if eps is None or not defended or eps not in defended[0].by_eps or abs(lift.value) < 0.05:
        return
    top = defended[0].by_eps[eps].value
    axes.annotate(
        "",
        xy=(eps, top),
        xytext=(eps, top - lift.value),
        arrowprops={
            "arrowstyle": "<|-|>",
            "color": PAINTS["ink"],
            "linewidth": 1.3,
            "shrinkA": 2,
            "shrinkB": 5,
        },
        zorder=6,
    )
    axes.annotate(
        f"{100 * lift.value:+.0f} points",
        xy=(eps, top - 0.35 * lift.value),
        xytext=(8, -2),
        textcoords="offset points",
        fontweight="bold",
        va="center",
        zorder=6,
    )


def _describe(attack: Attack) -> str:
    sentences = []
    for curve in attack.curves:
        on = curve.label if curve.label == curve.model else f"{curve.label} ({curve.model})"
        values = ", ".join(f"{100 * r.value:.1f}% at {eps:g}" for eps, r in curve.by_eps.items())
        sentences.append(f"{on}: {values}.")
    return " ".join(sentences)


def draw_queries(runs: Sequence[AttackRun]) -> Picture:
    """Draw success against image queries, one curve an eps of the defended model."""

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        _share_axis(axes)
        axes.set_ylabel("taken to the target")
        axes.set_xlabel("image queries")
        axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 7))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{v:g}" if v < 1000 else f"{v / 1000:g}k")
        )
        for k, run in enumerate(runs):
            at = [point.n_queries for point in run.query_curve]
            rates = [point.asr for point in run.query_curve]
            axes.fill_between(
                at,
                [r.low for r in rates],
                [r.high for r in rates],
                color=PAINTS["defended"],
                alpha=0.12,
                linewidth=0,
            )
            axes.plot(
                at,
                [r.value for r in rates],
                color=PAINTS["defended"],
                marker="os^vXD"[k % 6],
                linestyle=["-", "--", "-.", ":"][k % 4],
                markersize=5,
                label=f"eps {run.eps:g}",
            )
        figure.legend(loc="outside lower center", ncols=3 if narrow else 6)

    described = " ".join(
        f"eps {run.eps:g}: "
        + ", ".join(f"{100 * p.asr.value:.1f}% after {p.n_queries:,}" for p in run.query_curve)
        + "."
        for run in runs
    )
    return draw(
        "queries",
        "Share of held-out images taken to the target, by image queries",
        described,
        plot,
        height=3.2,
        narrow_height=3.4,
    )


def draw_relearning(evidence: RelearningEvidence) -> Picture:
    """Draw ASR against training steps: the defended model and the innocent ones."""
    steps = evidence.steps

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        _share_axis(axes)
        axes.set_ylabel("taken to the target")
        axes.set_xlabel("training steps")
        axes.set_xticks(steps, [str(step) for step in steps])
        paint = PAINTS["reference"]
        columns = list(zip(*evidence.innocent_asr.values(), strict=True))
        axes.fill_between(
            steps,
            [min(column) for column in columns],
            [max(column) for column in columns],
            color=paint,
            alpha=0.22,
            linewidth=0,
            label=f"innocent models ({len(evidence.innocent_asr)})",
        )
        for curve in evidence.innocent_asr.values():
            axes.plot(steps, curve, color=paint, linewidth=0.9)
        if evidence.clean_target_rate:
            axes.plot(
                steps,
                evidence.clean_target_rate,
                color=PAINTS["same_delta"],
                marker="^",
                linestyle=_DASHES["same_delta"],
                linewidth=1.4,
                label=SAME_IMAGES,
            )
        axes.plot(
            steps,
            evidence.asr,
            color=PAINTS["defended"],
            marker="o",
            markersize=7,
            linewidth=2.4,
            label="defended model",
        )
        figure.legend(loc="outside lower center", ncols=2 if narrow else 3)

    rows = {"Defended": evidence.asr, SAME_IMAGES: evidence.clean_target_rate}
    described = " ".join(
        f"{name}: "
        + ", ".join(f"{100 * v:.1f}% after {s}" for s, v in zip(steps, curve, strict=True))
        + "."
        for name, curve in (rows | evidence.innocent_asr).items()
        if curve
    )
    return draw(
        "relearning",
        "Share of held-out images taken to the target, by training steps",
        described,
        plot,
        height=3.2,
        narrow_height=3.4,
    )


def draw_bec(records: Sequence[BecRecord]) -> Picture | None:
    """Draw the coefficient layer by layer, one mark a reference; `None` where all are undefined."""
    layers = [layer.layer for layer in records[0].layers][:_MOST_LAYERS]
    values = {
        r.reference: {x.layer: x.coefficient for x in r.layers if x.coefficient is not None}
        for r in records
    }
    if not any(values.values()):
        return None

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for k, (reference, by_layer) in enumerate(values.items()):
            rows = [row for row, layer in enumerate(layers) if layer in by_layer]
            axes.plot(
                [by_layer[layers[row]] for row in rows],
                rows,
                color=PAINTS["defended"],
                marker="os^vXD"[k % 6],
                markerfacecolor=PAINTS["defended"] if k == 0 else "none",
                linestyle="none",
                markersize=6.5,
                label=f"against {reference}",
            )
        axes.axvline(0.0, color=PAINTS["reference"], linewidth=1.4)
        axes.axvline(1.0, color=PAINTS["original"], linewidth=1.4)
        for at, text in ((0.0, "innocent"), (1.0, "original")):
            axes.text(at, -0.9, text, ha="center", va="bottom", fontsize=9.5)
        axes.set_yticks(range(len(layers)), [_short(layer, narrow) for layer in layers])
        axes.set_ylim(len(layers) - 0.4, -0.7)
        low = min(0.0, *(v for by in values.values() for v in by.values()))
        high = max(1.0, *(v for by in values.values() for v in by.values()))
        axes.set_xlim(max(low, -1.0) - 0.09, min(high, 2.0) + 0.09)
        axes.set_xlabel("coefficient of the layer")
        if len(values) > 1:
            figure.legend(loc="outside lower center", ncols=1 if narrow else 3)

    described = " ".join(
        f"Against {reference}: " + ", ".join(f"{n} {v:.2f}" for n, v in by_layer.items()) + "."
        for reference, by_layer in values.items()
    )
    height = 1.4 + 0.24 * len(layers)
    return draw(
        "bec",
        "Backdoor existence coefficient of each layer, from 0 (innocent) to 1 (original)",
        described,
        plot,
        height=height,
        narrow_height=height + (0.2 * len(values) if len(values) > 1 else 0),
    )


def draw_tac(record: BecRecord) -> Picture | None:
    """Draw which layers of the original the trigger moves most; `None` where none was ranked."""
    ranked = sorted((x for x in record.layers if x.top_tac), key=lambda x: -max(x.top_tac))
    ranked = ranked[:_FIRST_LAYERS]
    if not ranked:
        return None

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for row, layer in enumerate(ranked):
            axes.plot(
                [0.0, max(layer.top_tac)], [row, row], color=PAINTS["original"], linewidth=1.2
            )
            axes.plot(
                layer.top_tac,
                [row] * len(layer.top_tac),
                color=PAINTS["original"],
                marker="o",
                linestyle="none",
                markersize=5,
                markerfacecolor="none",
            )
        axes.set_yticks(range(len(ranked)), [_short(x.layer, narrow) for x in ranked])
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.set_xlim(left=0.0)
        axes.set_xlabel("trigger-activated change")

    described = ", ".join(f"{x.layer} {max(x.top_tac):.2f}" for x in ranked)
    return draw(
        "tac",
        "Layers of the original by the trigger-activated change of their strongest channels",
        f"Largest change: {described}.",
        plot,
        height=1.1 + 0.24 * len(ranked),
    )


def _short(name: str, narrow: bool) -> str:
    """Keep the end of a long name, which tells layers apart."""
    most, shown = 18 if narrow else 40, name
    return shown if len(shown) <= most else "..." + shown[3 - most :]
