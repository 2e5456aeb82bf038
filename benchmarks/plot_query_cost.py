"""Draw and tabulate what `benchmarks/query_cost.py --json` kept.

    python benchmarks/plot_query_cost.py docs/figures/query_cost.json docs/figures

Writes one SVG a model and eps, ASR on held-out images against image queries, every seed a line, and
prints the tables of docs/query-evidence.md. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

COLOURS = {
    "research, scores": "#7f7f7f",
    "cold, scores": "#9ecae1",
    "cold, labels": "#fdae6b",
    "warm, scores": "#08519c",
    "warm, labels": "#d94801",
}
AT = (500, 3_000, 8_000, 30_000, 100_000)

Search = dict[str, Any]


def main() -> None:
    """Write figures and print tables."""
    parser = argparse.ArgumentParser(description="Draw and tabulate query searches.")
    parser.add_argument("kept", type=Path, help="file of query_cost.py --json")
    parser.add_argument("out", type=Path, help="folder of the figures")
    parser.add_argument("--name", nargs="*", default=[], help="DIGEST=NAME of a model")
    options = parser.parse_args()
    names = dict(pair.split("=", 1) for pair in options.name)
    groups: defaultdict[tuple[str, float], list[Search]] = defaultdict(list)
    for search in longest_of_each(json.loads(options.kept.read_text())):
        groups[search["model"], search["eps"]].append(search)
    options.out.mkdir(parents=True, exist_ok=True)
    for (model, eps), searches in sorted(groups.items()):
        name = names.get(model, model)
        draw(name, eps, searches, options.out / f"query_{name}_{eps:g}.svg")
        tabulate(name, eps, searches)


def longest_of_each(searches: Sequence[Search]) -> list[Search]:
    """Of searches that differ in their budget alone keep the one with the largest."""
    longest: dict[tuple[object, ...], Search] = {}
    for search in sorted(searches, key=lambda s: s["max_queries"]):
        key = tuple(search[name] for name in ("model", "eps", "seed", "search", "bf16"))
        longest[key] = search
    return list(longest.values())


def draw(name: str, eps: float, searches: Sequence[Search], path: Path) -> None:
    """Draw every search of one model at one eps."""
    mpl.rcParams["svg.hashsalt"] = "bdaudit"  # the same data give the same file
    figure, axes = plt.subplots(figsize=(7, 4))
    shown = set()
    for search in sorted(searches, key=lambda s: list(COLOURS).index(s["search"])):
        kind = search["search"]
        counts, rates = zip(*search["curve"], strict=True)
        axes.step(
            counts,
            rates,
            where="post",
            color=COLOURS[kind],
            linewidth=1,
            label=None if kind in shown else kind,
        )
        shown.add(kind)
    by_seed = {s["seed"]: s for s in searches}
    white = statistics.fmean(s["white"] for s in by_seed.values())
    axes.axhline(white, color="black", linewidth=0.8, label="white box (mean)")
    axes.axhline(0.9 * white, color="black", linewidth=0.8, linestyle="--", label="90 % of it")
    axes.axhline(
        searches[0]["alone"], color="black", linewidth=0.8, linestyle=":", label="trigger alone"
    )
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_xlabel("image queries")
    axes.set_ylabel("ASR, held-out images")
    axes.set_title(f"{name}, L-inf eps {eps:g}")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def tabulate(name: str, eps: float, searches: Sequence[Search]) -> None:
    """Print one table in Markdown: medians over seeds, with the extremes where they differ."""
    by_seed = {s["seed"]: s for s in searches}
    white = [s["white"] for s in by_seed.values()]
    print(
        f"\n**{name}, eps {eps:g}**: white box {spread(white)}, the trigger alone "
        f"{searches[0]['alone']:.2f}, seeds {', '.join(map(str, sorted(by_seed)))}.\n"
    )
    columns = [f"at {n:,}" for n in AT]
    print("| search | to 50 % | to 90 % | " + " | ".join(columns) + " | CPU s |")
    print("|---|---|---|" + "---|" * (len(columns) + 1))
    for kind in COLOURS:
        own = [s for s in searches if s["search"] == kind]
        if not own:
            continue
        reached = [queries_to(share, own) for share in (0.5, 0.9)]
        rates = [rates_at(n, own) for n in AT]
        seconds = spread([s["cpu_s"] for s in own], digits=0)
        seeds = "" if len(own) == len(by_seed) else f" ({len(own)} seed{'s' * (len(own) > 1)})"
        print(f"| {kind}{seeds} | " + " | ".join([*reached, *rates, seconds]) + " |")


def queries_to(share: float, searches: Sequence[Search]) -> str:
    """Return the median number of queries from which on a search has `share` of its white box."""
    counts: list[int] = []
    for search in searches:
        reached = None
        for n_queries, rate in search["curve"]:
            if rate < share * search["white"]:
                reached = None
            elif reached is None:
                reached = n_queries
        counts += [] if reached is None else [reached]
    if not counts:
        return f"not by {max(s['curve'][-1][0] for s in searches):,}"
    missed = len(searches) - len(counts)
    return f"{statistics.median_low(counts):,}" + (f" ({missed} never)" if missed else "")


def rates_at(n_queries: int, searches: Sequence[Search]) -> str:
    """Return the ASR after `n_queries`, `-` where no search went so far."""
    rates = []
    for search in searches:
        if search["max_queries"] < n_queries:
            return "-"
        before = [rate for count, rate in search["curve"] if count <= n_queries]
        rates.append(before[-1] if before else search["alone"])
    return spread(rates)


def spread(values: Sequence[float], *, digits: int = 2) -> str:
    """Return the median, and the extremes where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
