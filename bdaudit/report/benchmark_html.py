"""A benchmark as one self-contained HTML file that a reader can judge in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bdaudit.records import Mode
from bdaudit.records.benchmark import VARIANTS, BenchCase, BenchmarkRecord, RocCurve, Score
from bdaudit.records.families import Truth
from bdaudit.report.benchmark import (
    OUTCOMES,
    SCORES,
    TRUTHS,
    areas,
    average_queries,
    control_rows,
    gist,
    key_rates,
    main_variant,
    memory,
    of_variant,
    rows,
    step_costs,
)
from bdaudit.report.drawing import PAINTS, Picture, draw
from bdaudit.report.page import render_page
from bdaudit.report.untrusted import shown

__all__ = ["render"]

_PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")
_LOOKS: dict[Truth, tuple[str, str]] = {
    "active": ("original", "s"),
    "dormant": ("defended", "o"),
    "removed": ("reference", "D"),
    "innocent": ("same_delta", "^"),
    "unknown": ("noise", "x"),
}
"""Paint and marker of each truth, so that colour is not all that tells them apart."""


def render(record: BenchmarkRecord) -> str:
    """Write `record` as a page that works offline and printed."""
    record = shown(record)
    main = main_variant(record)
    cases = of_variant(record, main)
    eps, table = rows(record)
    return render_page(
        "benchmark.html.j2",
        record=record,
        gist=gist(record),
        rates=key_rates(record),
        variants={variant: words.label for variant, words in VARIANTS.items()},
        truths=TRUTHS,
        outcomes=OUTCOMES,
        scores=SCORES,
        main=main,
        areas=areas(record),
        by_attack=_by_attack(record),
        eps=eps,
        rows=table,
        modes=list(dict.fromkeys(mode for row in table for mode in row.by_mode)),
        roc=_draw_roc(areas(record)),
        scatter=_draw_scatter(cases, eps),
        controls=control_rows(record),
        queries=_draw_queries(record),
        costs={variant: list(step_costs(record.costs, variant)) for variant in record.confusion},
        memory=memory,
    )


def _by_attack(record: BenchmarkRecord) -> list[tuple[str, RocCurve | None, RocCurve | None]]:
    """Give, attack by attack, the areas of lift (the most over eps) and of BEC."""
    found = []
    for attack in sorted({c.attack for c in record.curves if c.attack is not None}):
        own = [c for c in record.curves if c.attack == attack]
        lift = next((c for c in own if c.score == "lift" and c.eps is None), None)
        bec = next((c for c in own if c.score == "bec"), None)
        found.append((attack, lift, bec))
    return found


def _draw_roc(curves: Sequence[RocCurve]) -> Picture | None:
    """Draw the best curve of each figure."""
    best: dict[str, RocCurve] = {}
    for curve in curves:  # the best first
        best.setdefault(curve.score, curve)
    if not best:
        return None
    chosen = [best[score] for score in SCORES if score in best]
    paints = ("defended", "original", "same_delta", "no_trigger", "noise", "wrong_target", "ink")
    dashes = (
        "-",
        (0, (5, 1.5)),
        (0, (3, 1.2, 1, 1.2)),
        (0, (1, 1.2)),
        (0, (1, 3)),
        (0, (8, 2, 1, 2)),
        (0, (2, 2)),
    )

    def plot(figure: Figure, _narrow: bool) -> None:
        axes = figure.subplots()
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.03)
        axes.xaxis.set_major_formatter(_PER_CENT)
        axes.yaxis.set_major_formatter(_PER_CENT)
        axes.set_xlabel("innocent and removed models above the limit")
        axes.set_ylabel("sleeping ones above it")
        axes.plot([0, 1], [0, 1], color=PAINTS["grid"], linewidth=1.2)
        for curve, paint, dash in zip(chosen, cycle(paints), cycle(dashes)):
            axes.plot(
                [x for x, _ in curve.points],
                [y for _, y in curve.points],
                color=PAINTS[paint],
                linestyle=dash,
                linewidth=2.2 if paint == "defended" else 1.5,
                label=f"{_name(curve)}: {curve.auc:.2f}",
            )
        figure.legend(loc="outside lower center", ncols=1)

    return draw(
        "roc",
        "Share of sleeping models above a limit, against that of innocent and removed ones",
        "Area under the curve: " + "; ".join(f"{_name(c)} {c.auc:.3f}" for c in chosen) + ".",
        plot,
        height=5.2,
        narrow_height=5.8,
    )


def _name(curve: RocCurve) -> str:
    if curve.mode is None:
        return SCORES[curve.score]
    at = "most over eps" if curve.eps is None else f"eps {curve.eps:g}"
    return f"{SCORES[curve.score]}, {curve.mode}, {at}"


def _draw_scatter(cases: Sequence[BenchCase], eps: float | None) -> Picture | None:
    """Draw BEC against the re-activated ASR, and against the lift over the controls."""
    drawn = [case for case in cases if case.bec is not None and case.points]
    if not drawn or eps is None:
        return None
    mode = drawn[0].points[0].mode  # cases of one variant hold attacks of one kind

    def plot(figure: Figure, narrow: bool) -> None:
        shape = (2, 1) if narrow else (1, 2)
        left, right = figure.subplots(*shape, sharex=True)
        _scatter(left, drawn, eps, "asr", mode, f"re-activated ASR, eps {eps:g}", labelled=True)
        _scatter(right, drawn, None, "lift", mode, "lift over all controls, most over eps")
        right.set_xlabel("BEC")
        if not narrow:
            left.set_xlabel("BEC")
        figure.legend(loc="outside lower center", ncols=2 if narrow else 5)

    described = "; ".join(
        f"{case.member} ({TRUTHS[case.truth]}): BEC {case.bec:.2f}" for case in drawn[:80]
    )
    return draw(
        "scatter",
        "BEC against re-activated ASR and against the lift, a point a model",
        f"{described}.",
        plot,
        height=4.2,
        narrow_height=7.0,
    )


_SEARCHES = {
    "trigger": ("trigger + delta, sleeping models", "defended", "-"),
    "no_trigger": ("universal attack without the trigger, same models", "no_trigger", (0, (5, 2))),
    "innocent": ("trigger + delta, innocent models", "reference", (0, (1, 1.2))),
}


def _draw_queries(record: BenchmarkRecord) -> Picture | None:
    """Draw how far query searches get with a sleeping backdoor, and without one."""
    eps, n_models, means = average_queries(record, "dormant")
    if "trigger" not in means:
        return None

    def plot(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.yaxis.set_major_formatter(_PER_CENT)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("images asked about")
        axes.set_ylabel("held-out success")
        for kind, points in means.items():
            label, paint, dash = _SEARCHES[kind]
            axes.step(
                [n for n, _ in points],
                [rate for _, rate in points],
                where="post",
                color=PAINTS[paint],
                linestyle=dash,
                linewidth=2.0,
                label=label,
            )
        figure.legend(loc="outside lower center", ncols=1)

    return draw(
        "queries",
        f"Success by number of queries at eps {eps:g}, mean over {n_models} sleeping models",
        "; ".join(
            f"{_SEARCHES[kind][0]}: {100 * points[-1][1]:.1f}% after {points[-1][0]:,}"
            for kind, points in means.items()
        )
        + ".",
        plot,
        height=4.0,
        narrow_height=4.6,
    )


def _scatter(
    axes: Axes,
    cases: Sequence[BenchCase],
    eps: float | None,
    score: Score,
    mode: Mode,
    title: str,
    *,
    labelled: bool = False,
) -> None:
    axes.yaxis.set_major_formatter(_PER_CENT)
    axes.set_ylabel(title)
    for truth, (paint, marker) in _LOOKS.items():
        own = [(c.bec, c.figure(score, mode, eps)) for c in cases if c.truth == truth]
        found = [(x, y) for x, y in own if x is not None and y is not None]
        if not found:
            continue
        axes.plot(
            [x for x, _ in found],
            [y for _, y in found],
            linestyle="none",
            marker=marker,
            markersize=5.5,
            markerfacecolor="none" if marker != "x" else PAINTS[paint],
            markeredgecolor=PAINTS[paint],
            color=PAINTS[paint],
            label=TRUTHS[truth] if labelled else None,
        )
