"""Attacks of one model in one batch of many deltas, against one after another.

    python benchmarks/together.py [MODEL --data DATA --trigger TRIGGER] [--device cuda]

Takes the embedded demonstration's dormant model where no other is given. The same searches, four
radii with the trigger and four without it, run one by one and as a batch of so many; each way in
turn, several rounds. Printed is the median of the seconds of a whole round (of the processor on a
processor, by the clock on a card), the ratio to one by one, peak memory, how many values of the
deltas differ by more than a thousandth of eps, and by how much craft success does. On a card each
size runs step by step and as a CUDA graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bdaudit.data import load_sample
from bdaudit.foundation.memory import PeakMemory
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.reactivation import (
    Search,
    WhiteboxConfig,
    WhiteboxResult,
    most_together,
    reactivate_together,
)
from bdaudit.triggers import Poisoned, poison, read_trigger

DEMO = Path(__file__).parents[1] / "bdaudit" / "demo_files"
RADII = (0.01, 0.02, 0.03, 0.05)


def searches(poisoned: Poisoned, config: WhiteboxConfig) -> list[Search]:
    """Return the attacks of a ladder with the trigger and without it."""
    return [
        Search(
            triggered=images,
            targets=poisoned.targets,
            config=replace(config, eps=eps),
            generator=torch.Generator().manual_seed(number),
        )
        for images in (poisoned.triggered, poisoned.clean)
        for number, eps in enumerate(RADII)
    ]


def run(
    model: nn.Module, wanted: Sequence[Search], size: int, device: torch.device
) -> tuple[float, int | None, list[WhiteboxResult]]:
    """Return seconds, peak bytes and results of all searches, `size` at a time."""
    on_card = device.type == "cuda"
    memory = PeakMemory(device)
    started = time.perf_counter() if on_card else time.process_time()
    found: list[WhiteboxResult] = []
    for first in range(0, len(wanted), size):
        for outcome in finish(reactivate_together(model, wanted[first : first + size])):
            assert isinstance(outcome, WhiteboxResult), outcome
            found.append(outcome)
    ended = time.perf_counter() if on_card else time.process_time()
    return ended - started, memory.read(), found


def apart(
    found: Sequence[WhiteboxResult], expected: Sequence[WhiteboxResult]
) -> tuple[float, float]:
    """Return the largest share of values that differ, and difference in craft success."""
    pairs = list(zip(found, expected, strict=True))
    values = [
        ((a.delta - b.delta).abs() > 1e-3 * b.config.eps).double().mean().item() for a, b in pairs
    ]
    return max(values), max(abs(a.craft_success - b.craft_success) for a, b in pairs)


def main() -> None:
    """Measure, and print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=DEMO / "dormant.safetensors")
    parser.add_argument("--data", type=Path, default=DEMO / "clean.npz")
    parser.add_argument("--trigger", type=Path, default=DEMO / "trigger.toml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=200, help="craft images")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    loaded = load_model(options.model, name="model", device=device)
    classes = loaded.num_classes
    poisoned = poison(load_sample(options.data), read_trigger(options.trigger), classes)
    chosen = slice(0, options.images)
    poisoned = replace(
        poisoned,
        clean=poisoned.clean[chosen],
        triggered=poisoned.triggered[chosen],
        targets=poisoned.targets[chosen],
    )
    config = WhiteboxConfig(eps=0.01, n_passes=options.passes, patience=None)
    default = most_together(loaded.classifier, poisoned.triggered, config)
    sizes = sorted({1, *options.sizes, min(default, 2 * len(RADII))})
    ways = [
        (size, graph)
        for size in sizes
        for graph in ((False, True) if device.type == "cuda" else (False,))
    ]
    times: dict[tuple[int, bool], list[float]] = {way: [] for way in ways}
    rows: dict[tuple[int, bool], tuple[int | None, list[WhiteboxResult]]] = {}
    run(loaded.classifier, searches(poisoned, replace(config, n_passes=1)), 1, device)
    for _ in range(options.rounds):
        for way in ways:
            wanted = searches(poisoned, replace(config, graph=way[1]))
            seconds, peak, found = run(loaded.classifier, wanted, way[0], device)
            times[way].append(seconds)
            rows[way] = peak, found
    print(
        f"{len(poisoned.targets)} craft images, {options.passes} passes, default: {default} at once"
    )
    alone = statistics.median(times[1, False])
    for way in ways:
        peak, found = rows[way]
        seconds = statistics.median(times[way])
        values, success = apart(found, rows[1, False][1])
        memory = "" if peak is None else f"  peak {peak / 2**20:6.0f} MiB"
        noted = {
            d.message for result in found for d in result.diagnostics if d.code == "no_cuda_graph"
        }
        print(
            f"{way[0]:3} at once{', graph' if way[1] else '':8}{seconds:8.2f} s  ratio "
            f"{seconds / alone:.2f}{memory}  values that differ {values:.2%}, "
            f"success by {success:.3f}{'; ' + noted.pop() if noted else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
