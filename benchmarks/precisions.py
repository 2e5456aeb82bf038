"""What moves between two benches of one family, as between float32 and bfloat16.

    bdaudit bench FAMILY --out float32 --precision float32
    bdaudit bench FAMILY --out auto --precision auto
    python benchmarks/precisions.py float32 auto

Every attack is found again in the other bench by model, condition and eps. Printed is how far
rates, BEC and relearning are apart, every verdict that is another one, and what each bench took.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def records(folder: Path) -> dict[str, Record]:
    """Return the records of a bench by the names of their files."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob("records/*.json")}
    return {name: record for name, record in found.items() if record.get("kind") == "audit"}


def rates(record: Record) -> dict[tuple[object, ...], float]:
    """Return the ASR of every attack, placebos among them, by what it is."""
    return {
        tuple(run[key] for key in ("mode", "model", "condition", "placebo", "eps")): (
            run["asr"]["successes"] / run["asr"]["total"]
        )
        for run in record["runs"]
    }


def coefficients(record: Record) -> dict[str, float]:
    return {bec["reference"]: bec["value"] for bec in record["bec"] if bec["value"] is not None}


def gap(record: Record) -> float | None:
    relearning = record.get("relearning")
    return None if relearning is None else relearning["evidence"]["gap"]


def told(what: str, differences: list[float]) -> None:
    """Print how far pairs of figures are apart, in points of a hundred."""
    if not differences:
        return
    points = [100 * abs(difference) for difference in differences]
    print(
        f"{what:12} {len(points):5} pairs: {statistics.fmean(points):.2f} points apart on average, "
        f"{sum(p > 1 for p in points)} more than 1, {sum(p > 5 for p in points)} more than 5, at "
        f"most {max(points):.1f}; mean difference {100 * statistics.fmean(differences):+.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    options = parser.parse_args()
    one, other = records(options.one), records(options.other)
    common = sorted(one.keys() & other.keys())
    both = [(name, one[name], other[name]) for name in common]
    print(f"{len(both)} audits of both, {len(one)} and {len(other)} in all")
    told(
        "rates",
        [
            rates(b)[key] - value
            for _, a, b in both
            for key, value in rates(a).items()
            if key in rates(b)
        ],
    )
    told(
        "BEC",
        [
            coefficients(b)[key] - value
            for _, a, b in both
            for key, value in coefficients(a).items()
            if key in coefficients(b)
        ],
    )
    gaps = [(gap(a), gap(b)) for _, a, b in both]
    told("relearning", [b - a for a, b in gaps if a is not None and b is not None])
    moved = [
        (name, a["verdict"]["outcome"], b["verdict"]["outcome"])
        for name, a, b in both
        if a["verdict"]["outcome"] != b["verdict"]["outcome"]
    ]
    print(f"verdicts     {len(both) - len(moved)} the same, {len(moved)} another")
    for name, before, after in moved:
        print(f"             {name.removesuffix('.json')}: {before}, {after}")
    for folder, found in ((options.one, one), (options.other, other)):
        seconds = sum(found[name]["elapsed_s"] for name in common)
        print(f"{folder.name:12} {seconds:.0f} s of audits")


if __name__ == "__main__":
    main()
