"""Measure relearning on models whose truth is known or strongly suspected.

    python benchmarks/build_inversion_models.py MODELS --data /usr/share/datasets/fashion-mnist
    python benchmarks/relearning.py MODELS OUT --data /usr/share/datasets/fashion-mnist

For the demonstration's models and for five attacks of `build_inversion_models.py`, each fine-tuned
on clean images and unlearned with the trigger under true labels: the gap over innocent models that
went through the same fine-tuning, and the gap of each of those over the others, which is what
chance makes. Settings are the defaults but for 350 held-out images and bfloat16. Figures go to
OUT, one JSON a model; what is there already is not measured again. About seven minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bdaudit.data import Sample, load_sample
from bdaudit.foundation.progress import Progress
from bdaudit.models import load_model
from bdaudit.relearning import (
    RelearnConfig,
    Relearned,
    choose_rate,
    compare_relearning,
    read_gap,
    relearn,
)
from bdaudit.triggers import Poisoned, Trigger, poison, read_trigger

DEMO = Path(__file__).resolve().parent.parent / "bdaudit" / "demo_files"
ATTACKS = ("patch7", "blend", "lowfreq", "warp", "sinusoid")
CONFIG = RelearnConfig(n_held_out=350)
CRAFT, HELD_OUT = torch.arange(1_000, 1_500), torch.arange(3_000, 3_400)


def taught(path: Path, trigger: Trigger, test: Sample, config: RelearnConfig) -> Relearned:
    """Relearn one model, under bfloat16; the autocast may not outlive a step (its cache is off)."""
    craft = test.take(CRAFT)
    made: tuple[Poisoned, Poisoned] = (
        poison(craft, trigger, 10),
        poison(test.take(HELD_OUT), trigger, 10),
    )
    steps = relearn(
        load_model(path, name=path.stem).classifier,
        craft.images,
        craft.labels,
        craft=made[0],
        held_out=made[1],
        config=config,
        generator=torch.Generator().manual_seed(0),
    )
    while True:
        try:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                _: Progress = next(steps)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def figures(model: Relearned, innocents: Mapping[str, Relearned], rate: float) -> dict[str, object]:
    evidence = compare_relearning(
        model, innocents, generator=torch.Generator().manual_seed(0), learning_rate=rate
    )
    return {
        "before": float(model.before.double().mean()),
        "reading": read_gap(evidence),
        **evidence.model_dump(mode="json"),
    }


def measure(models: Path, out: Path, test: Sample) -> None:
    """Measure every group of models that have one trigger."""
    groups = {
        "demo": (DEMO / "trigger.toml", DEMO, ["dormant", "removed"], [1, 2, 3], "innocent-{}")
    }
    for name in ATTACKS:
        groups[name] = (
            models / "triggers" / f"{name}.toml",
            models,
            [f"{name}-finetuned", f"{name}-unlearned"],
            [31, 32, 33],
            "innocent-{}-finetuned",
        )
    for name, (trigger_file, folder, defended, seeds, pattern) in groups.items():
        path = out / f"{name}.json"
        if path.exists():
            continue
        started = time.process_time()
        trigger = read_trigger(trigger_file)
        names = [pattern.format(seed) for seed in seeds]
        innocents = {n: taught(folder / f"{n}.safetensors", trigger, test, CONFIG) for n in names}
        rate = choose_rate(list(innocents.values()))
        found = {
            other: {
                f"{tried:g}": figures(
                    one, {n: i for n, i in innocents.items() if i is not one}, tried
                )
                for tried in CONFIG.learning_rates
                if not any(tried in innocent.diverged for innocent in innocents.values())
            }
            for other, one in innocents.items()
        }
        config = replace(CONFIG, learning_rates=(rate,))
        for one in defended:
            model = taught(folder / f"{one}.safetensors", trigger, test, config)
            found[one] = {f"{rate:g}": figures(model, innocents, rate)}
        path.write_text(json.dumps({"rate": rate, "models": found}, indent=1))
        print(f"{name}: rate {rate:g}, {time.process_time() - started:.0f} s of CPU", flush=True)
        for one, by_rate in found.items():
            f = by_rate[f"{rate:g}"]
            print(
                f"  {one}: trigger alone {f['before']:.2f}, gap {f['gap']:+.2f} "
                f"({f['low']:+.2f} to {f['high']:+.2f}) {f['reading']}; asr {f['asr']}, "
                f"untriggered {f['clean_target_rate']}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    measure(arguments.models, arguments.out, load_sample(arguments.data, split="test"))


if __name__ == "__main__":
    main()
