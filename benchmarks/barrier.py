"""What lies on the straight line of weights between originals and the models made from them.

    python benchmarks/barrier.py FAMILY --only 'blended-*'

For every model of a family that has an original and its architecture: the truth, clean accuracy,
how far clean loss and error rise above the line between the two ends, and the ASR of the trigger
alone at nine points from the original to the model. Innocent models are held against an original
they never came from, which is what no descent looks like. Prints a Markdown table, seconds a model.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path

import torch

from bdaudit.data import load_sample, split_sample
from bdaudit.errors import ModelError
from bdaudit.existence.barrier import measure_barrier
from bdaudit.foundation.progress import finish
from bdaudit.models import load_model
from bdaudit.records.families import read_family
from bdaudit.triggers import poison, read_trigger

N_IMAGES = 250


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = read_family(arguments.family)
    sample = load_sample(arguments.family / family.sample)
    split = split_sample(sample, n_craft=N_IMAGES, seed=arguments.seed)
    print("| model | truth | clean | loss barrier | error barrier | trigger alone on the way |")
    print("|---|---|---|---|---|---|")
    for member in family.to_audit():
        if arguments.only and not any(fnmatch(member.name, p) for p in arguments.only):
            continue
        assert member.original is not None
        assert member.trigger is not None
        original, model = (
            load_model(arguments.family / family.member(name).file, name=name).classifier
            for name in (member.original, member.name)
        )
        trigger = read_trigger(arguments.family / family.triggers[member.trigger].file)
        held_out = poison(split.held_out, trigger, family.num_classes)
        try:
            line = finish(
                measure_barrier(
                    original,
                    model,
                    clean=split.held_out.images[:N_IMAGES],
                    labels=split.held_out.labels[:N_IMAGES],
                    triggered=held_out.triggered[:N_IMAGES],
                    targets=held_out.targets[:N_IMAGES],
                    calibration=split.craft.images,
                    batch_size=125,
                    device=torch.device("cpu"),
                )
            )
        except ModelError as error:
            print(f"| {member.name} | {member.truth} | | {error} | | |", flush=True)
            continue
        way = " ".join(f"{point.asr.value:.2f}".lstrip("0") for point in line.points)
        clean = line.points[-1].clean_acc.value
        print(
            f"| {member.name} | {member.truth} | {clean:.2f} | {line.loss:.2f} | "
            f"{line.error:.2f} | {way} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
