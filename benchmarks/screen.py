"""How often `bdaudit screen` points at a backdoored model, and how often at an innocent one.

    python benchmarks/screen.py run FAMILY ... --out RESULTS --seeds 3    # measures, keeps
    python benchmarks/screen.py table RESULTS                             # prints
    python benchmarks/screen.py null                                      # without any model

A FAMILY is a folder that `bdaudit zoo build` made. Every model in it is searched from the random
images of each seed, and what was found is added to RESULTS, a line of JSON each, as it is made;
what is there already is not made again. `--only` takes patterns of models' names.

`null` draws the margins of models without a backdoor from one gamma distribution, and counts how
many of them each p-value calls suspicious.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdaudit.foundation.progress import finish
from bdaudit.inversion.maximum_margin import (
    MaximumMarginConfig,
    find_maximum_margins,
    hold_against_gamma,
)
from bdaudit.models import load_model

DETECT_AT = 0.05


def members(folder: Path, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a family's models: name, file, truth, and the target of its trigger if it has one."""
    document = json.loads((folder / "family.json").read_text())
    for member in document["members"]:
        if only and not any(fnmatch(member["name"], pattern) for pattern in only):
            continue
        trigger = document["triggers"].get(member["trigger"] or "", {})
        yield {
            "family": document["name"],
            "model": member["name"],
            "file": str(folder / member["file"]),
            "lineage": member["lineage"],
            "truth": member["truth"],
            "target": trigger.get("target_label"),
        }


def measure(member: dict[str, Any], seed: int) -> dict[str, Any]:
    """Search one model from one seed's images."""
    model = load_model(member["file"], name=member["model"])
    model.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    begun = time.perf_counter()
    found = finish(
        find_maximum_margins(
            model.classifier,
            image_shape=model.image_shape,
            num_classes=model.num_classes,
            config=MaximumMarginConfig(),
            seed=seed,
            batch_size=512,
        )
    )
    return {
        **member,
        "seed": seed,
        "statistics": found.statistics.tolist(),
        "steps": found.steps,
        "still": found.still,
        "differentiated": found.differentiated,
        "seconds": time.perf_counter() - begun,
    }


def run(folders: Sequence[Path], out: Path, seeds: int, only: Sequence[str]) -> None:
    """Measure whatever is not in `out` yet, all models of one seed before the next."""
    known = {(row["family"], row["model"], row["seed"]) for row in kept(out)}
    for seed in range(seeds):
        for folder in folders:
            for member in members(folder, only):
                if (member["family"], member["model"], seed) in known:
                    continue
                row = measure(member, seed)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(_line(row), flush=True)


def kept(out: Path) -> list[dict[str, Any]]:
    """Return what was measured before."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def table(out: Path) -> None:
    """Print a row a model, over its seeds, then how many of each truth were pointed at."""

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["family"], row["model"]

    counts: dict[tuple[str, str], list[int]] = {}
    print(
        "| family | model | truth | target | pointed at | largest, next | p | paper's p | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (family, model), group in groupby(sorted(kept(out), key=key), key=key):
        rows = list(group)
        nulls = [hold_against_gamma(torch.tensor(row["statistics"])) for row in rows]
        first = rows[0]
        largest = [sorted(row["statistics"])[-2:][::-1] for row in rows]
        figures = (
            ", ".join(str(null.label) for null in nulls),
            ", ".join(f"{a:.0f} and {b:.0f}" for a, b in largest),
            ", ".join("none" if n.p_value is None else f"{n.p_value:.2g}" for n in nulls),
            ", ".join("none" if n.published is None else f"{n.published:.2g}" for n in nulls),
            f"{sum(row['seconds'] for row in rows) / len(rows):.0f}",
        )
        target = "-" if first["target"] is None else str(first["target"])
        print(f"| {family} | {model} | {first['truth']} | {target} | {' | '.join(figures)} |")
        for row, held in zip(rows, nulls, strict=True):
            told = held.p_value is not None and held.p_value <= DETECT_AT
            count = counts.setdefault((family, first["truth"]), [0, 0, 0])
            count[0] += 1
            count[1] += told
            count[2] += told and held.label == row["target"]
    print()
    print("| family | truth | runs | suspicious | of them at the true target |")
    print("|---|---|---|---|---|")
    for (family, truth), (runs, told, right) in sorted(counts.items()):
        print(f"| {family} | {truth} | {runs} | {told} | {right} |")


def null(n_models: int = 600, shape: float = 3.0) -> None:
    """Count how often either p-value is at most the limit where there is no backdoor."""
    print("| classes | paper's p-value is at most .05 | ours |")
    print("|---|---|---|")
    for n_classes in (4, 5, 10, 43, 100, 1000):
        draws = np.random.default_rng(5).gamma(shape, size=(n_models, n_classes))
        nulls = [hold_against_gamma(torch.tensor(row)) for row in draws]
        paper = np.mean([n.published is not None and n.published <= DETECT_AT for n in nulls])
        ours = np.mean([n.p_value is not None and n.p_value <= DETECT_AT for n in nulls])
        print(f"| {n_classes:,} | {100 * paper:.0f} % | {100 * ours:.0f} % |")


def _line(row: dict[str, Any]) -> str:
    held = hold_against_gamma(torch.tensor(row["statistics"]))
    return (
        f"{row['family']} {row['model']} seed {row['seed']}: class {held.label} (target "
        f"{row['target']}), p {held.p_value}, {row['seconds']:.0f} s, "
        f"{[round(s, 1) for s in row['statistics']]}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folders", nargs="+", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--only", action="append", default=[])
    commands.add_parser("table").add_argument("out", type=Path)
    commands.add_parser("null")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.folders, arguments.out, arguments.seeds, arguments.only)
    elif arguments.command == "table":
        table(arguments.out)
    else:
        null()


if __name__ == "__main__":
    main()
