"""What a delta made on surrogates does to the demonstration's models.

    python benchmarks/transfer.py [--seeds 0 1 2] [--passes 12] [--n-craft 300]
    python benchmarks/transfer.py --strategy one-per-step --passes 24 --seeds 0
    python benchmarks/transfer.py --peak 0.05 --seeds 0

For each seed of split, surrogates and attack: held-out ASR on the dormant model of the delta made
on each kind of source, the white box on the dormant model itself beside it, and for the four
default surrogates together the same delta without the trigger and on the models in which nothing
sleeps. `--strategy`, `--input-diversity` and `--peak`, the rate at which surrogates are tuned, show
what the defaults were chosen among. Prints a table of means; takes about three minutes a seed on
one busy core.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from bdaudit.data import load_sample, split_sample
from bdaudit.defenses import (
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    TuningConfig,
)
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.reactivation.transfer import TransferConfig, reactivate_transfer
from bdaudit.relatives.surrogates import SurrogateConfig, make_surrogates
from bdaudit.scoring import predict
from bdaudit.triggers import poison, read_trigger

EPS = (0.02, 0.03)
INNOCENT = ("innocent-1", "innocent-2", "innocent-3")


def share(classifier: nn.Module, images: Tensor, wanted: Tensor, delta: Tensor | None) -> float:
    """Return the share of images + delta classified as wanted."""
    predicted = predict(classifier, images, batch_size=250, delta=delta)
    return float((predicted == wanted).double().mean())


def surrogates_at(peak: float) -> SurrogateConfig:
    """Return the default defences, tuned with this peak rate."""
    tuning = TuningConfig(learning_rate=peak)
    return SurrogateConfig(
        defenses=(
            FinetuneConfig(tuning=tuning),
            FtSamConfig(tuning=tuning),
            FinePruningConfig(tuning=tuning),
            FstConfig(tuning=tuning),
        )
    )


def measure(
    folder: Path, seed: int, options: argparse.Namespace
) -> tuple[dict[tuple[str, float], float], dict[str, str]]:
    """Return (row, eps) -> held-out ASR, and what the surrogates are like."""
    names = ("original", "dormant", "removed", *INNOCENT)
    models = {name: load_model(folder / f"{name}.safetensors", name=name) for name in names}
    split = split_sample(load_sample(folder / "clean.npz"), n_craft=options.n_craft, seed=seed)
    trigger = read_trigger(folder / "trigger.toml")
    craft, held_out = poison(split.craft, trigger, 10), poison(split.held_out, trigger, 10)
    started = time.process_time()
    surrogates = finish(
        make_surrogates(
            models["original"],
            split.craft,
            config=surrogates_at(options.peak),
            generator=torch.Generator().manual_seed(seed),
        )
    )
    notes = {"surrogates made in": f"{time.process_time() - started:.0f} s of processor time"}
    for model in surrogates:
        acc = share(model.classifier, split.held_out.images, split.held_out.labels, None)
        asr = share(model.classifier, held_out.triggered, held_out.targets, None)
        notes[model.name] = f"clean accuracy {acc:.3f}, trigger alone {asr:.3f}"
    dormant = models["dormant"].classifier
    sources = {
        "original": [models["original"].classifier],
        **{model.name: [model.classifier] for model in surrogates},
        "the four": [model.classifier for model in surrogates],
        "the four and the original": [
            *(model.classifier for model in surrogates),
            models["original"].classifier,
        ],
        "innocent models, three": [models[name].classifier for name in INNOCENT],
    }
    found = {}
    for eps in EPS:
        for name, nets in sources.items():
            delta = finish(
                reactivate_transfer(
                    nets,
                    craft.triggered,
                    craft.targets,
                    config=TransferConfig(
                        eps=eps,
                        n_passes=options.passes,
                        strategy=options.strategy,
                        input_diversity=options.input_diversity,
                    ),
                    generator=torch.Generator().manual_seed(seed),
                )
            ).delta
            found[name, eps] = share(dormant, held_out.triggered, held_out.targets, delta)
            if name != "the four":
                continue
            found["  the same delta, no trigger", eps] = share(
                dormant, held_out.clean, held_out.targets, delta
            )
            for other in ("removed", *INNOCENT):
                found[f"  the same delta, {other}", eps] = share(
                    models[other].classifier, held_out.triggered, held_out.targets, delta
                )
        delta = finish(
            reactivate_whitebox(
                dormant,
                craft.triggered,
                craft.targets,
                config=WhiteboxConfig(eps=eps, n_passes=options.passes),
                generator=torch.Generator().manual_seed(seed),
            )
        ).delta
        found["white box", eps] = share(dormant, held_out.triggered, held_out.targets, delta)
        print(
            seed, eps, {row: round(v, 3) for (row, e), v in found.items() if e == eps}, flush=True
        )
    return found, notes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--n-craft", type=int, default=300)
    parser.add_argument("--peak", type=float, default=TuningConfig().learning_rate)
    parser.add_argument(
        "--strategy", choices=("ensemble", "momentum", "one-per-step"), default="ensemble"
    )
    parser.add_argument("--input-diversity", type=float, default=0.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[tuple[str, float], list[float]] = defaultdict(list)
    with resources.as_file(resources.files("bdaudit") / "demo_files") as folder:
        for seed in arguments.seeds:
            found, notes = measure(folder, seed, arguments)
            print(f"seed {seed}:", *(f"  {key}: {value}" for key, value in notes.items()), sep="\n")
            for cell, value in found.items():
                table[cell].append(value)
    rows = list(dict.fromkeys(row for row, _ in table))
    print("\n| delta made on | " + " | ".join(f"eps {eps:g}" for eps in EPS) + " |")
    print("|---|" + "---|" * len(EPS))
    for row in rows:
        cells = (table[row, eps] for eps in EPS)
        print(
            f"| {row} | "
            + " | ".join(f"{sum(c) / len(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in cells)
            + " |"
        )


if __name__ == "__main__":
    main()
