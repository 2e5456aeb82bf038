"""A perturbation for each image from a small generator, against one delta for all images.

    python benchmarks/sample_dependent.py demo --eps 0.03 --out dependent
    python benchmarks/sample_dependent.py --table dependent

A small U-Net g is trained on craft images so that the model asked sends x + eps tanh(g(x)) to the
trigger's target, and so that an innocent model stays right about the same images (the product's
smoothed count for both terms; the second with `--keep` as its weight). In the same number of passes
through the model asked, one delta for all images is made by the product's standard objective and by
its specific one, which holds the same innocent model right.

Its null is the same attack elsewhere: on innocent models, where another innocent model is kept
right, and on clean images of the same model, without the trigger. For every attack success on
held-out images with the trigger is given beside success of the attack made on clean images and
shown to clean ones, and the share of held-out images that the innocent model kept right still gets
right.

Source: re-activation by a generator with a term that keeps a clean model right, as in QRA (arXiv
2410.09838), whose distance to a relearned model is left out: an auditor has no such model.

A line is appended for every model, seed and attack; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from kept_lines import KeptLines, read_lines
from known_models import Asked, Subjects, add_arguments, open_subjects, run
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.foundation.progress import finish
from bdaudit.perturbation import make_ball, smoothed_failure
from bdaudit.reactivation import SpecificTerms, WhiteboxConfig, reactivate_whitebox
from bdaudit.scoring import predict

BATCH, GENERATOR_BATCH = 40, 20
ATTACKS = ("universal", "universal, specific", "generator, free", "generator")

Perturb = Callable[[Tensor], Tensor]
"""Images (n, C, H, W) to the same, perturbed within eps."""


class Generator(nn.Module):
    """A U-Net of two levels."""

    def __init__(self, n_channels: int, width: int = 16) -> None:
        super().__init__()
        self.first = block(n_channels, width)
        self.second = block(width, 2 * width)
        self.lowest = block(2 * width, 2 * width)
        self.third = block(4 * width, width)
        self.fourth = block(2 * width, width)
        self.last = nn.Conv2d(width, n_channels, 1)
        self.down = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        high = self.first(images)
        middle = self.second(self.down(high))
        low = self.lowest(self.down(middle))
        middle = self.third(torch.cat((middle, enlarged(low, middle)), 1))
        found: Tensor = self.last(self.fourth(torch.cat((high, enlarged(middle, high)), 1)))
        return found


def enlarged(small: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(small, size=like.shape[2:])


def block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1), nn.GroupNorm(4, n_out), nn.ReLU(inplace=True)
    )


def trained_generator(
    asked: Asked,
    innocent: nn.Module,
    images: Tensor,
    *,
    eps: float,
    passes: int,
    keep: float,
    seed: int,
) -> Perturb:
    """Train a generator on craft images, with the trigger or without."""
    labels, targets = asked.craft.labels, asked.craft.targets
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Generator(images.shape[1])
    stream = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    ball = make_ball("linf", eps)

    def perturb(shown: Tensor) -> Tensor:
        return (shown + ball.project(eps * torch.tanh(network(shown)))).clamp(0, 1)

    n_batches = math.ceil(len(images) / GENERATOR_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=passes * n_batches
    )
    for _ in range(passes):
        for chosen in torch.randperm(len(images), generator=stream).tensor_split(n_batches):
            shown = perturb(images[chosen])
            loss = smoothed_failure(asked.classifier(shown), targets[chosen]).mean()
            if keep:
                right = smoothed_failure(innocent(shown), labels[chosen]).mean()
                loss = loss + keep * right
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def frozen(shown: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([perturb(part) for part in shown.split(100)])

    return frozen


def universal(
    asked: Asked,
    innocent: nn.Module,
    images: Tensor,
    *,
    eps: float,
    passes: int,
    specific: bool,
    seed: int,
) -> Perturb:
    """Make one delta for all images, as the product does."""
    craft = asked.craft
    terms = SpecificTerms(
        clean=craft.clean, labels=craft.labels, reference=innocent, clean_weight=0.0
    )
    delta = finish(
        reactivate_whitebox(
            asked.classifier,
            images,
            craft.targets,
            config=WhiteboxConfig(
                eps=eps,
                n_passes=passes,
                batch_size=BATCH,
                patience=None,
                objective="specific" if specific else "standard",
            ),
            generator=torch.Generator().manual_seed(seed),
            specific=terms if specific else None,
        )
    ).delta
    return lambda shown: (shown + delta).clamp(0, 1)


def attack(
    name: str, subjects: Subjects, asked: Asked, seed: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """Make one attack with the trigger and without, and score both."""
    innocent = subjects.other_innocent(asked.model.name)
    rates = {}
    for start in ("triggered", "clean"):
        images: Tensor = getattr(asked.craft, start)
        settings = {"eps": arguments.eps, "passes": arguments.passes, "seed": seed}
        if name.startswith("universal"):
            specific = name.endswith("specific")
            perturb = universal(asked, innocent, images, specific=specific, **settings)
        else:
            keep = arguments.keep if name == "generator" else 0.0
            perturb = trained_generator(asked, innocent, images, keep=keep, **settings)
        held_out = asked.held_out
        shown = perturb(getattr(held_out, start))
        moved = (shown - getattr(held_out, start)).abs().amax()
        assert float(moved) <= arguments.eps + 1e-6
        rates[start] = counted(asked.classifier, shown, held_out.targets)
        rates[f"{start} kept"] = counted(innocent, shown, held_out.labels)
    return rates


def counted(classifier: nn.Module, images: Tensor, wanted: Tensor) -> float:
    answers = predict(classifier, images, batch_size=200)
    return round(float((answers == wanted).double().mean()), 4)


def measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Append a line for every model, seed and attack that is not there yet."""
    subjects = open_subjects(parser, arguments)
    kept = KeptLines(arguments.out / f"{subjects.name}.jsonl")
    for seed in arguments.seeds:
        for asked in subjects:
            alone = counted(asked.classifier, asked.held_out.triggered, asked.held_out.targets)
            for name in arguments.attacks:
                about = {
                    "family": subjects.name,
                    "model": asked.model.name,
                    "trigger": asked.trigger,
                    "eps": arguments.eps,
                    "seed": seed,
                    "passes": arguments.passes,
                    "craft_images": arguments.craft,
                    "keep": arguments.keep,
                    "attack": name,
                }
                if kept.has(about):
                    continue
                began = time.process_time()
                rates = attack(name, subjects, asked, seed, arguments)
                elapsed = round(time.process_time() - began, 1)
                truth = {"truth": asked.truth, "alone": alone}
                kept.add(about | truth | rates | {"cpu_s": elapsed})


def show(folder: Path) -> None:
    """Print a table of each family."""
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = defaultdict(list)
    for line in read_lines(folder):
        groups[line["family"], line["eps"], line["passes"]].append(line)
    for (family, eps, passes), lines in groups.items():
        print(f"\n{family}, eps {eps:g}, {passes} passes\n")
        print(
            "| attack | dormant: triggered / clean | lead | kept right "
            "| innocent, the most: triggered / clean | the most lead | CPU s |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in ATTACKS:
            by_truth: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for line in lines:
                if line["attack"] == name:
                    by_truth[line["truth"]].append(line)
            asleep, innocent = by_truth["dormant"], by_truth["innocent"]
            if not asleep or not innocent:
                continue
            leads = [line["triggered"] - line["clean"] for line in innocent]
            woken = fmean(line["triggered"] for line in asleep)
            without = fmean(line["clean"] for line in asleep)
            print(
                f"| {name} | {woken:.2f} / {without:.2f} | {woken - without:+.2f} "
                f"| {fmean(line['triggered kept'] for line in asleep):.2f} "
                f"| {max(line['triggered'] for line in innocent):.2f} / "
                f"{max(line['clean'] for line in innocent):.2f} | {max(leads):+.2f} "
                f"| {fmean(line['cpu_s'] for line in asleep + innocent):.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("dependent"), help="folder of lines")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--keep", type=float, default=1.0, help="weight of the innocent model")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    run(parser, measure, show)


if __name__ == "__main__":
    main()
