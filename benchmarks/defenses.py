"""What each defence does to backdoored models: clean accuracy and ASR, before and after.

    python benchmarks/build_inversion_models.py MODELS --data /usr/share/datasets/fashion-mnist
    python benchmarks/defenses.py OUT.json --data /usr/share/datasets/fashion-mnist \
        --models MODELS/{patch7,blend,lowfreq,warp,sinusoid}.safetensors \
        bdaudit/demo_files/original.safetensors --methods nad anp --seeds 0 1

    python benchmarks/defenses.py OUT.json --data FAMILY/clean.npz --images 1000 --test 1400 \
        --models FAMILY/models/{badnets,blended}-r10-s1.safetensors --methods seam mm-bm

A model's trigger is `triggers/<its name>.toml` in its folder, or `trigger.toml` there; in a family
of `bdaudit zoo` that of its attack. Of Fashion-MNIST the clean images are those that no model of
these was trained on (places 40,000 to 60,000 of one fixed shuffle), and rates are counted on 4,000
test images; a file of images, on which no model was trained, is divided between the two. What
OUT.json has already is not measured again, so a killed run goes on. `--set` changes a setting of
the methods, and `--table` prints what has been measured, one line a method. One CPU thread, float32
unless `--bf16`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from bdaudit.data import Sample, load_sample
from bdaudit.defenses.catalogue import DEFENSES, defense_config, flat_settings
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import finish
from bdaudit.foundation.writing import write_atomically
from bdaudit.models import load_model
from bdaudit.scoring import predict
from bdaudit.triggers import NOT_COUNTED, Trigger, read_trigger

Row = dict[str, Any]


def clean_images(train: Sample, n: int) -> Sample:
    """Take images from the part of the fixed shuffle that trained no model."""
    pool = torch.randperm(len(train), generator=torch.Generator().manual_seed(1234))[40_000:60_000]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(500))
    return train.take(pool[order[:n]])


def divided(sample: Sample, n: int, n_test: int) -> tuple[Sample, Sample]:
    """Take images to defend with and others to count on."""
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(500))
    return sample.take(order[:n]), sample.take(order[n : n + n_test])


def trigger_of(model: Path) -> Trigger:
    of_family = model.parent.parent / "triggers" / f"{model.stem.split('-r')[0]}.toml"
    if of_family.exists():
        return read_trigger(of_family)
    named = model.parent / "triggers" / f"{model.stem}.toml"
    return read_trigger(named if named.exists() else model.parent / "trigger.toml")


def rates(classifier: nn.Module, test: Sample, trigger: Trigger, num_classes: int) -> Row:
    right = predict(classifier, test.images, batch_size=250) == test.labels
    targets = trigger.targets(test.labels, num_classes)
    counted = targets != NOT_COUNTED
    answers = predict(classifier, trigger.stamp(test.images[counted]), batch_size=250)
    hit = answers == targets[counted]
    return {"clean_acc": float(right.double().mean()), "asr": float(hit.double().mean())}


@contextmanager
def precision(bf16: bool) -> Iterator[None]:
    # Without the cache: it would keep the casts of weights that have changed since.
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        yield


def measure(
    model: Path, method: str, settings: Mapping[str, Any], clean: Sample, test: Sample, row: Row
) -> Row:
    """Defend one model and count."""
    loaded = load_model(model, name=model.stem, fallback_image_shape=tuple(test.images.shape[1:]))
    trigger = trigger_of(model)
    before = rates(loaded.classifier, test, trigger, loaded.num_classes)
    started = time.process_time()
    steps = DEFENSES[method].run(
        loaded.classifier,
        clean.images,
        clean.labels,
        config=defense_config(method, settings),
        generator=torch.Generator().manual_seed(row["seed"]),
    )
    try:
        with precision(row["bf16"]):
            defended = finish(steps)
    except ModelError as error:
        return {**row, "before": before, "after": None, "reason": str(error)}
    elapsed = time.process_time() - started
    after = rates(defended, test, trigger, loaded.num_classes)
    return {**row, "before": before, "after": after, "cpu_s": round(elapsed, 1)}


def table(rows: list[Row]) -> None:
    """Print one line for each method and its settings, a column for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    print("| defence | " + " | ".join(models) + " | CPU s |")
    print("|---|" + "---|" * (len(models) + 1))

    def cell(found: list[Row], when: str) -> str:
        measured = [row[when] for row in found if row[when] is not None]
        if not measured:
            return "-"
        figures = [100 * mean(one[key] for one in measured) for key in ("clean_acc", "asr")]
        return " / ".join(f"{figure:.1f}" for figure in figures)

    none = [[row for row in rows if row["model"] == model] for model in models]
    print("| none | " + " | ".join(cell(found, "before") for found in none) + " | |")
    for label in dict.fromkeys(label_of(row) for row in rows):
        its = [row for row in rows if label_of(row) == label]
        cells = [cell([row for row in its if row["model"] == model], "after") for model in models]
        spent = [row["cpu_s"] for row in its if row["after"] is not None]
        print(f"| {label} | {' | '.join(cells)} | {mean(spent) if spent else 0:.0f} |")


def label_of(row: Row) -> str:
    changed = ", ".join(f"{key} {value}" for key, value in row["changed"].items())
    return f"{row['method']} ({changed})" if changed else str(row["method"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the idx files, or one file")
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", choices=DEFENSES, default=list(DEFENSES))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=2_000, help="clean images of the defender")
    parser.add_argument("--test", type=int, default=4_000)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    if arguments.table:
        table(rows)
        return
    if arguments.data.is_file():
        clean, test = divided(load_sample(arguments.data), arguments.images, arguments.test)
    else:
        train, test = (load_sample(arguments.data, split=split) for split in ("train", "test"))
        clean, test = clean_images(train, arguments.images), test.take(torch.arange(arguments.test))
    changed = {key: json.loads(value) for key, value in (one.split("=") for one in arguments.set)}
    for seed in arguments.seeds:
        for method in arguments.methods:
            for model in arguments.models:
                row = {
                    "model": model.stem,
                    "method": method,
                    "seed": seed,
                    "images": arguments.images,
                    "test": arguments.test,
                    "bf16": arguments.bf16,
                    "changed": changed,
                    "settings": flat_settings(defense_config(method, changed)),
                }
                if any(all(one.get(key) == value for key, value in row.items()) for one in rows):
                    continue
                rows.append(measure(model, method, changed, clean, test, row))
                write_atomically(arguments.out, json.dumps(rows, indent=1).encode())
                figures = {key: rows[-1].get(key) for key in ("before", "after", "cpu_s")}
                print(f"{label_of(row)}, {model.stem}, seed {seed}: {figures}", flush=True)


if __name__ == "__main__":
    main()
