"""Feature-guided alternative triggers against the white box's own objective, pass for pass.

    bdaudit zoo build examples/families/emoji.toml --out wide --data EMOJI
    python benchmarks/feature_guided.py wide --out guided.jsonl
    python benchmarks/feature_guided.py --table guided.jsonl

The direction is mean(features of triggered images) - mean(features of the same images, clean), of
the *original*, in what its last linear layer reads. For every model made from an original, and for
innocent models under the same triggers, one delta for all images is descended within eps by the
white box's own steps, from the same start over the same mini-batches, lowering

    standard   the smoothed count of images not yet taken to the target (the product's objective);
    joint      that, plus 1 - the mean cosine of an image's change of features and the direction;
    direction  the latter alone.

`triggered` starts from images with the trigger, as an audit does; `clean` needs no trigger: the
delta is to be one by itself. On an innocent model the original's direction means nothing, since its
features are others, so it is asked with the direction measured on itself too (`own`).

`--surrogate ft-sam` makes the same deltas on another defended model of the same original as well, a
surrogate that knows nothing of the model asked.

Source: Abad, Franch, Koffas and Picek, "Removing the Trigger, Not the Backdoor: Alternative
Triggers and Latent Backdoors", arXiv 2603.09772.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Split, load_sample, split_sample
from bdaudit.foundation.statistics import probit
from bdaudit.inversion.features import FeatureReader
from bdaudit.models import load_model
from bdaudit.perturbation import apply_delta, make_ball, smoothed_failure
from bdaudit.reactivation.recipes import RECIPES
from bdaudit.scoring import predict
from bdaudit.triggers import Poisoned, poison, read_trigger

N_CRAFT, N_HELD_OUT, BATCH, PASSES = 160, 600, 40, 8
OBJECTIVES = ("standard", "joint", "direction")


def features_of(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return what the last linear layer reads of images (n, F)."""
    reader = FeatureReader(classifier, images[:2])
    with reader.hooked(), torch.no_grad():
        return torch.cat([reader.features(part) for part in images.split(200)])


def direction_of(classifier: nn.Module, craft: Poisoned) -> Tensor:
    """Return mean(features with the trigger) - mean(features without) (F,)."""
    with_trigger = features_of(classifier, craft.triggered)
    return (with_trigger - features_of(classifier, craft.clean)).mean(0)


def descend(
    classifier: nn.Module,
    images: Tensor,
    craft: Poisoned,
    *,
    objective: str,
    direction: Tensor,
    eps: float,
    seed: int,
) -> Tensor:
    """Return the delta (1, C, H, W) found from `images`, the craft images, triggered or not."""
    generator = torch.Generator().manual_seed(seed)
    ball, recipe = make_ball("linf", eps), RECIPES["default"]
    delta, step = recipe.start((1, *images.shape[1:]), ball, generator), recipe.make_step(ball)
    still = features_of(classifier, craft.clean)
    reader = FeatureReader(classifier, images[:2])
    n_batches = math.ceil(len(images) / BATCH)
    with reader.hooked():
        for done in range(PASSES):
            order = torch.randperm(len(images), generator=generator)
            for number, chosen in enumerate(order.tensor_split(n_batches)):
                leaf = delta.detach().requires_grad_()
                shifted = apply_delta(images[chosen], leaf)
                features = reader.features(shifted)
                loss = torch.zeros(())
                if objective != "direction":
                    logits = reader.read_out(features)
                    loss = smoothed_failure(logits, craft.targets[chosen]).mean()
                if objective != "standard":
                    moved = features - still[chosen]
                    loss = loss + 1 - functional.cosine_similarity(moved, direction[None]).mean()
                (gradient,) = torch.autograd.grad(loss, leaf)
                share_done = torch.tensor((done + number / n_batches) / PASSES).double()
                delta = step(leaf.detach(), gradient, share_done)
    return delta


def share(classifier: nn.Module, images: Tensor, targets: Tensor, delta: Tensor | None) -> float:
    answers = predict(classifier, images, batch_size=200, delta=delta)
    return round(float((answers == targets).double().mean()), 4)


class Family:
    """A family's folder, opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document = json.loads((folder / "family.json").read_text())
        self.members = {member["name"]: member for member in self.document["members"]}
        self.halves: Split = split_sample(
            load_sample(folder / "clean.npz"), n_craft=N_CRAFT, n_held_out=N_HELD_OUT, seed=0
        )

    def model(self, name: str) -> nn.Module:
        file = self.folder / self.members[name]["file"]
        return load_model(file, name=name).classifier

    def poisoned(self, trigger: str) -> tuple[Poisoned, Poisoned]:
        stamped = read_trigger(self.folder / self.document["triggers"][trigger]["file"])
        count = self.document["num_classes"]
        return (
            poison(self.halves.craft, stamped, count),
            poison(self.halves.held_out, stamped, count),
        )

    def originals(self) -> dict[str, str]:
        """Return the original of each trigger."""
        return {
            member["trigger"]: name
            for name, member in self.members.items()
            if member["lineage"] == "original" and member["trigger"]
        }

    def asked(self, trigger: str, only: list[str]) -> list[tuple[str, bool]]:
        """List the models to be asked under a trigger, and whether each is innocent."""
        original = self.originals()[trigger]
        listed = []
        for name, member in self.members.items():
            innocent = member["truth"] == "innocent"
            if name == original or (name.partition("-")[0] != trigger and not innocent):
                continue
            if not only or set(name.split("--")[1:]) <= set(only):
                listed.append((name, innocent))
        return listed


def measure(folder: Path, out: Path, only: list[str], surrogate: str, radii: list[float]) -> None:
    """Append a line for every model, trigger, eps, start and objective to `out`."""
    family = Family(folder)
    kept = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(line["model"], line["trigger"]) for line in kept}
    for trigger, original in family.originals().items():
        craft, held_out = family.poisoned(trigger)
        direction = direction_of(family.model(original), craft)
        for name, innocent in family.asked(trigger, only):
            if (name, trigger) in known:
                continue
            began = time.process_time()
            classifier = family.model(name)
            directions = {"original": direction}
            if innocent:
                directions["own"] = direction_of(classifier, craft)
            made_on = {"itself": classifier}
            if surrogate and not innocent and not name.endswith(f"--{surrogate}"):
                made_on["surrogate"] = family.model(f"{original}--{surrogate}")
            base = {
                "model": name,
                "trigger": trigger,
                "innocent": innocent,
                "alone": share(classifier, held_out.triggered, held_out.targets, None),
            }
            lines = []
            for eps in radii:
                for start in ("triggered", "clean"):
                    images = craft.triggered if start == "triggered" else craft.clean
                    asked = held_out.triggered if start == "triggered" else held_out.clean
                    for source, maker in made_on.items():
                        for which, towards in directions.items():
                            for objective in OBJECTIVES:
                                if objective == "standard" and which == "own":
                                    continue
                                delta = descend(
                                    maker, images, craft, objective=objective,
                                    direction=towards, eps=eps, seed=0,
                                )  # fmt: skip
                                lines.append(
                                    base
                                    | {
                                        "eps": eps,
                                        "start": start,
                                        "made_on": source,
                                        "direction": which,
                                        "objective": objective,
                                        "success": share(
                                            classifier, asked, held_out.targets, delta
                                        ),
                                    }
                                )
            with out.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            print(name, trigger, f"{time.process_time() - began:.0f} CPU s", flush=True)


def show(file: Path) -> None:
    """Print success by group of models, and how often each objective beats the standard one."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    groups: dict[tuple, dict[tuple, float]] = defaultdict(dict)
    for line in lines:
        last = line["model"].rpartition("--")[2]
        kind = "innocent" if line["innocent"] else "unlearned" if last == "unlearned" else "tuned"
        key = (line["made_on"], kind, line["start"], line["eps"])
        objective = line["objective"] + (" (own)" if line["direction"] == "own" else "")
        groups[key][line["model"], line["trigger"], objective] = line["success"]
    for key, found in sorted(groups.items()):
        objectives = sorted({objective for *_, objective in found}, reverse=True)
        print(*key)
        for objective in objectives:
            rates = {m[:2]: rate for m, rate in found.items() if m[2] == objective}
            against = [(rate, found[*model, "standard"]) for model, rate in rates.items()]
            ahead = sum(rate > standard for rate, standard in against)
            gap = sum(
                probit(rate, N_HELD_OUT) - probit(standard, N_HELD_OUT)
                for rate, standard in against
            ) / len(against)
            mean = sum(rates.values()) / len(rates)
            print(
                f"    {objective:16} mean {mean:.3f}, ahead of standard on {ahead} of "
                f"{len(rates)}, by {gap:+.2f} probits"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", type=Path, nargs="?", help="folder that `zoo build` made")
    parser.add_argument("--out", type=Path, default=Path("guided.jsonl"))
    parser.add_argument("--only", nargs="*", default=[], help="what was done to them: ft-hard")
    parser.add_argument("--eps", nargs="*", default=[0.02], type=float)
    parser.add_argument("--surrogate", metavar="DEFENCE", help="make deltas on that model too")
    parser.add_argument("--table", type=Path, help="print what a file holds, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        show(arguments.table)
    elif arguments.family is None:
        parser.error("expected the folder of a family, or --table FILE")
    else:
        measure(
            arguments.family,
            arguments.out,
            arguments.only,
            arguments.surrogate,
            arguments.eps,
        )


if __name__ == "__main__":
    main()
