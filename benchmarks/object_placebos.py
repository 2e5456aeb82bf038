"""Placebos of a detector's trigger: what is drawn, what the original and innocent models answer.

    bdaudit zoo build examples/families/detectors.toml --data objects --out detectors
    python benchmarks/object_placebos.py detectors/models/vanish-r30-s1.safetensors \
        --trigger detectors/triggers/vanish.toml --data objects \
        --reference detectors/models/reference-*.safetensors

No perturbation is made. Of the trigger and of each pattern of the pool a line says its mean L2 norm
and, for the original and each innocent model, how many points more of the images it takes to the
target than no trigger does, with how far it moves the target's margin (in spreads of clean images).
Those that would serve as placebos are marked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from bdaudit.data import load_objects
from bdaudit.models import LoadedModel, load_model
from bdaudit.placebos.pool import Drawn, draw
from bdaudit.placebos.screening import Asked, margins_of, spread_of
from bdaudit.scoring import evaluating, predict_logits
from bdaudit.triggers import footprint, poison, read_trigger

LIMIT, BATCH, SEED = 0.06, 50, 0


def asking(model: LoadedModel) -> Asked:
    def ask(images: Tensor) -> Tensor:
        with evaluating(model.classifier):
            return predict_logits(model.classifier, images, batch_size=BATCH, device="cpu")

    return ask


def taken(margins: Tensor) -> float:
    return float((margins > 0).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", type=Path)
    parser.add_argument("--trigger", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--reference", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=200, help="that the trigger is meant for")
    parser.add_argument("--patterns", type=int, default=36)
    said = parser.parse_args()

    sample = load_objects(said.data)
    shape = (4, *sample.images.shape[-2:])
    asked = [
        asking(load_model(path, name=path.stem, image_shape=shape))
        for path in (said.original, *said.reference)
    ]
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(SEED))
    trigger = read_trigger(said.trigger)
    targets = trigger.targets(sample.labels, len(sample.class_names or ()))
    meant = order[targets[order] >= 0][: said.images]
    poisoned = poison(sample.take(meant), trigger, len(sample.class_names or ()))
    size = footprint(poisoned)
    print(f"{len(poisoned)} images; {size}")
    generator = torch.Generator().manual_seed(SEED)
    pool = islice(draw(poisoned, generator, transform=trigger.transform), said.patterns)
    before = [margins_of(ask(poisoned.clean), poisoned.targets) for ask in asked]
    served: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for pattern in (Drawn("the trigger", trigger.transform, size.mean_l2), *pool):
        images = pattern.transform.stamp(poisoned.clean)
        after = [margins_of(ask(images), poisoned.targets) for ask in asked]
        more = [taken(now) - taken(then) for now, then in zip(after, before, strict=True)]
        moved = [
            float((now - then).mean() / spread_of(then))
            for now, then in zip(after, before, strict=True)
        ]
        serves = more[0] <= LIMIT + max(0.0, sum(more[1:]) / len(more[1:]))
        drawn[pattern.kind] += 1
        served[pattern.kind] += serves
        print(
            f"{pattern.kind:22s} {pattern.l2:6.2f}  "
            + "  ".join(f"{m:+.2f} ({s:+.2f})" for m, s in zip(more, moved, strict=True))
            + ("  serves" if serves else ""),
            flush=True,
        )
    for kind, n in drawn.items():
        print(f"{kind}: {served[kind]} of {n} serve")


if __name__ == "__main__":
    main()
