"""Relearn a family's triggers at every learning rate: does relearning separate, and at which?

    python benchmarks/relearning.py FAMILY OUT --trigger sig --trigger lf
    python benchmarks/relearning.py FAMILY OUT --table

For each trigger, copies of three innocent models, of every model that was made from its original,
and of innocent models that a defence was put through, are taught it at all four rates: two draws of
shots, 250 held-out images, the defaults otherwise. An audit teaches the model in question at one
rate only, which innocent models choose; here all are, so that the choice can be judged. What is in
OUT is not measured again. About 25 s of one core a model (PreAct-ResNet-18 of width 8, 32x32).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from bdaudit.data import Sample, load_sample
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.relearning import (
    RelearnConfig,
    Relearned,
    choose_rate,
    compare_relearning,
    read_gap,
    relearn,
)
from bdaudit.triggers import poison, read_trigger

CONFIG = RelearnConfig(draws=2, n_held_out=250)
N_INNOCENT = 3
INNOCENT = ("reference-", "--innocent", "--retrained")


def models_of(family: Path, trigger: str) -> tuple[list[str], list[str]]:
    """Return the innocent models that others are held against, and all that are held."""
    names = sorted(path.stem for path in (family / "models").glob("*.safetensors"))
    clean = [n for n in names if any(mark in n for mark in INNOCENT)]
    plain = [n for n in clean if n.count("--") < 2][:N_INNOCENT]
    made = [n for n in names if n.startswith(f"{trigger}-") and "--" in n and n not in clean]
    return plain, [*made, *clean]


def halves(family: Path) -> tuple[Sample, Sample]:
    """Return craft and held-out images, drawn once."""
    sample = load_sample(family / "clean.npz")
    order = torch.randperm(len(sample.labels), generator=torch.Generator().manual_seed(3))
    return sample.take(order[:300].sort().values), sample.take(order[300:900].sort().values)


def teach(family: Path, trigger: str, name: str, craft: Sample, held_out: Sample) -> Relearned:
    """Relearn one trigger on one model, at every rate; every model is taught the same."""
    known = read_trigger(family / "triggers" / f"{trigger}.toml")
    num_classes = int(max(craft.labels.max(), held_out.labels.max())) + 1
    steps = relearn(
        load_model(family / "models" / f"{name}.safetensors", name=name).classifier,
        craft.images,
        craft.labels,
        craft=poison(craft, known, num_classes),
        held_out=poison(held_out, known, num_classes),
        config=CONFIG,
        generator=torch.Generator().manual_seed(0),
    )
    return finish(steps)


def measure(family: Path, out: Path, trigger: str) -> None:
    """Teach every model of one trigger that OUT does not hold yet."""
    craft, held_out = halves(family)
    against, held = models_of(family, trigger)
    for name in dict.fromkeys((*against, *held)):
        path = out / f"{family.name}.{trigger}.{name}.pt"
        if path.exists():
            continue
        started = time.process_time()
        found = teach(family, trigger, name, craft, held_out)
        torch.save(
            {
                "before": found.before,
                "triggered": dict(found.triggered),
                "clean": dict(found.clean),
                "diverged": found.diverged,
            },
            path,
        )
        print(f"{trigger} on {name}: {time.process_time() - started:.0f} s", flush=True)


def stored(path: Path) -> Relearned:
    """Read what `measure` wrote."""
    return Relearned(config=CONFIG, **torch.load(path, weights_only=True))


def table(family: Path, out: Path) -> Iterator[str]:
    """Give a row a model: its gap over the innocent ones at every rate, and which is chosen."""
    by_trigger: dict[str, dict[str, Relearned]] = defaultdict(dict)
    for path in sorted(out.glob(f"{family.name}.*.pt")):
        _, trigger, name = path.stem.split(".", 2)
        by_trigger[trigger][name] = stored(path)
    rates = CONFIG.learning_rates
    yield "| model | trigger alone | " + " | ".join(f"{r:g}" for r in rates) + " | reading |"
    yield "|---|---|" + "---|" * (len(rates) + 1)
    for trigger, found in by_trigger.items():
        against, held = models_of(family, trigger)
        for name in (n for n in held if n in found):
            others = {n: found[n] for n in against if n != name and n in found}
            chosen = choose_rate(list(others.values()))
            yield row(name, trigger, found[name], others, chosen)


def row(
    name: str, trigger: str, model: Relearned, others: Mapping[str, Relearned], chosen: float
) -> str:
    cells, reading = [], "-"
    for rate in CONFIG.learning_rates:
        evidence = compare_relearning(
            model, others, generator=torch.Generator().manual_seed(0), learning_rate=rate
        )
        cell = f"{evidence.gap:+.2f}"
        if rate == chosen:
            cell = f"**{cell}** ({evidence.low:+.2f} to {evidence.high:+.2f})"
            reading = read_gap(evidence)
        cells.append(cell)
    alone = f"{float(model.before.double().mean()):.2f}"
    return f"| {trigger}: `{name}` | {alone} | {' | '.join(cells)} | {reading} |"


def main() -> None:
    """Measure the triggers that are named, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trigger", action="append", default=[], help="a file in triggers/")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for trigger in arguments.trigger:
        measure(arguments.family, arguments.out, trigger)
    if arguments.table:
        print("\n".join(table(arguments.family, arguments.out)))


if __name__ == "__main__":
    main()
