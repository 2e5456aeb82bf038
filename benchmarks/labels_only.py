"""Labels alone: the universal search against attacks that ask about each image by itself.

    python benchmarks/labels_only.py demo --eps 0.03 --out labels
    python benchmarks/labels_only.py --table labels

The model answers with its top label and nothing else. `universal` is the product's query search
without surrogates ("cold") and with four made from the suspected original ("warm"): one delta from
craft images, which then serves any number of new images and costs none of them a query. The others
are published attacks on one image, adapted: the source is the image with the trigger, the aim the
trigger's target, and an image is won when an image within eps of it (L-infinity) was answered with
the target, after as many queries as that took.

    HopSkipJump   walks along the boundary of the target's region, from an image of the target's
                  class, towards the source (Chen, Jordan and Wainwright, S&P 2020); its constants
                  are cut for hundreds of queries: 20 probes, growing with the root of the round,
                  a twentieth of the distance long; ten bisections
    RayS          one sign a pixel, first that of the way to an image of the target's class; halves,
                  quarters and so on are turned round where that brings the boundary nearer
                  (Chen and Gu, KDD 2020), which is untargeted as published
    random        signs in squares of 1, 2, 4 or 8 pixels at random, of length eps: no attack, but
                  what asking often does by itself

Innocent models are asked the same. A line is appended for every model, seed and attack; what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from kept_lines import KeptLines, read_lines
from known_models import Asked, Subjects, add_arguments, open_subjects, run, share
from torch import Tensor
from torch.nn import functional

from bdaudit.foundation.progress import finish
from bdaudit.reactivation.query import reactivate_query
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.relatives.surrogates import make_surrogates
from bdaudit.scoring import predict

STEPS = (1, 10, 30, 100, 300, 1000)
TOTALS = (300, 1000, 3000, 10_000, 20_000)
FAR = 0.5
"""Length, in pixel units, up to which RayS looks for the target's region along a direction."""


class Questions:
    """One question after another about every image still to be won, each counted.

    Attributes:
        won_after: (N,) queries after which an image within eps was answered with the target;
            infinite so far.
    """

    def __init__(self, asked: Asked, images: Tensor, targets: Tensor, eps: float, most: int):
        self.asked, self.sources, self.targets = asked, images, targets
        self.eps, self.most = eps, most
        self.n_asked = torch.zeros(len(images), dtype=torch.long)
        self.won_after = torch.full((len(images),), math.inf)

    @property
    def open(self) -> Tensor:
        """Images still to be won that may be asked about (N,)."""
        return self.won_after.isinf() & (self.n_asked < self.most)

    def ask(self, points: Tensor, which: Tensor | None = None) -> Tensor:
        """Say of which points (N, C, H, W), of those chosen, the answer is the target (N,)."""
        chosen = self.open if which is None else self.open & which
        hit = torch.zeros(len(points), dtype=torch.bool)
        if not chosen.any():
            return hit
        labels = predict(self.asked.classifier, points[chosen], batch_size=200)
        hit[chosen] = labels == self.targets[chosen]
        self.n_asked[chosen] += 1
        inside = (points - self.sources).abs().flatten(1).amax(1) <= self.eps + 1e-6
        self.won_after[hit & inside] = self.n_asked[hit & inside].float()
        return hit

    def success(self, after: int) -> float:
        return round(float((self.won_after <= after).double().mean()), 4)


def wide(values: Tensor) -> Tensor:
    """Return one value an image (N,) so that it multiplies images."""
    return values[:, None, None, None]


def of_target(subjects: Subjects, questions: Questions) -> Tensor:
    """Return for each source the nearest craft image of the target's class that is known as it."""
    craft = subjects.halves.craft
    answers = predict(questions.asked.classifier, craft.images, batch_size=200)
    starts = []
    for source, target in zip(questions.sources, questions.targets, strict=True):
        fit = craft.images[(craft.labels == target) & (answers == target)]
        if not len(fit):
            fit = craft.images[craft.labels == target]
        starts.append(fit[(fit - source).flatten(1).norm(dim=1).argmin()])
    return torch.stack(starts)


def hop_skip_jump(questions: Questions, start: Tensor, generator: torch.Generator) -> None:
    sources = questions.sources
    n_images = len(sources)

    def nearer(point: Tensor, n_bisections: int = 10) -> Tensor:
        """Bisect the cube around the source whose nearest point to `point` is still won."""
        high = (point - sources).abs().flatten(1).amax(1)
        low = torch.zeros(n_images)
        for _ in range(n_bisections):
            middle = (low + high) / 2
            hit = questions.ask(boxed(point, middle))
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        return boxed(point, high)

    def boxed(point: Tensor, radius: Tensor) -> Tensor:
        return sources + (point - sources).clamp(-wide(radius), wide(radius))

    reached = questions.ask(start)
    point = nearer(start)
    rounds = 0
    while (questions.open & reached).any():
        rounds += 1
        distance = (point - sources).abs().flatten(1).amax(1)
        n_probes = round(20 * math.sqrt(rounds))
        signs, probes = [], []
        for _ in range(n_probes):
            probe = 2 * torch.rand(sources.shape, generator=generator) - 1
            shown = (point + wide(distance / 20) * probe).clamp(0, 1)
            signs.append(2.0 * questions.ask(shown, reached) - 1)
            probes.append(shown - point)
        won = torch.stack(signs)  # (probes, N)
        mean = won.mean(0)
        weights = torch.where(mean.abs() < 1, won - mean, won)
        direction = torch.einsum("pn,pnchw->nchw", weights, torch.stack(probes)).sign()
        length = distance / math.sqrt(rounds)
        moved, done = point.clone(), ~reached
        for _ in range(6):
            tried = (point + wide(length) * direction).clamp(0, 1)
            hit = questions.ask(tried, ~done)
            moved[hit] = tried[hit]
            done, length = done | hit, length / 2
        point = nearer(moved)


def rays(questions: Questions, start: Tensor, generator: torch.Generator) -> None:
    sources = questions.sources
    n_images, n_values = len(sources), sources[0].numel()

    def at(direction: Tensor, radius: Tensor) -> Tensor:
        return (sources + wide(radius) * direction).clamp(0, 1)

    def bisect(direction: Tensor, radius: Tensor, which: Tensor) -> Tensor:
        """Return the smallest radius found at which the target is answered."""
        low, high = torch.zeros(n_images), radius
        for _ in range(6):
            middle = (low + high) / 2
            hit = questions.ask(at(direction, middle), which)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        return torch.where(which, high, radius)

    best = torch.where(start >= sources, 1.0, -1.0)
    radius = torch.full((n_images,), FAR)
    known = questions.ask(at(best, radius))
    radius = bisect(best, radius, known)
    level = 0
    while questions.open.any():
        edges = torch.linspace(0, n_values, 2**level + 1).round().long().tolist()
        for first, end in pairwise(edges):
            turned = best.flatten(1).clone()
            turned[:, first:end] *= -1
            turned = turned.view_as(best)
            hit = questions.ask(at(turned, radius))
            known |= hit
            best[hit] = turned[hit]
            if hit.any():
                radius = bisect(best, radius, hit)
        level = level + 1 if 2 ** (level + 1) <= n_values else 0


def at_random(questions: Questions, start: Tensor, generator: torch.Generator) -> None:
    sources = questions.sources
    n_images, n_channels, height, width = sources.shape
    while questions.open.any():
        side = int(2 ** torch.randint(4, (), generator=generator))
        shape = (n_images, n_channels, math.ceil(height / side), math.ceil(width / side))
        signs = 2.0 * torch.randint(2, shape, generator=generator) - 1
        signs = functional.interpolate(signs, scale_factor=side)[..., :height, :width]
        questions.ask((sources + questions.eps * signs).clamp(0, 1))


PER_IMAGE: dict[str, Callable[[Questions, Tensor, torch.Generator], None]] = {
    "HopSkipJump": hop_skip_jump,
    "RayS": rays,
    "random": at_random,
}
ATTACKS = ("universal, cold", "universal, warm", *PER_IMAGE)


def universal(
    subjects: Subjects, asked: Asked, seed: int, arguments: argparse.Namespace, *, warm: bool
) -> list[tuple[int, float]]:
    """Return held-out success after growing numbers of queries in all."""
    surrogates = ()
    if warm:
        surrogates = finish(
            make_surrogates(
                subjects.model(asked.original),
                subjects.halves.craft,
                generator=torch.Generator().manual_seed(seed),
                cache_dir=arguments.out / "surrogates",
            )
        )
    most = arguments.warm_queries if warm else arguments.max_queries
    found = finish(
        reactivate_query(
            lambda images: predict(asked.classifier, images, batch_size=200),
            asked.craft.triggered,
            asked.craft.targets,
            config=QueryConfig(eps=arguments.eps, max_queries=most, feedback="labels"),
            generator=torch.Generator().manual_seed(seed),
            surrogates=[surrogate.classifier for surrogate in surrogates],
        )
    )
    curve = []
    held_out = asked.held_out
    for total in (*(total for total in TOTALS if total < most), most):
        reached = [point for point in found.milestones if point.n_queries <= total]
        delta = reached[-1].delta if reached else torch.zeros_like(held_out.triggered[:1])
        curve.append((total, share(asked, held_out.triggered, held_out.targets, delta)))
    return curve


def one_by_one(
    subjects: Subjects, asked: Asked, name: str, seed: int, arguments: argparse.Namespace
) -> list[tuple[int, float]]:
    """Return success after growing numbers of queries an image."""
    held_out = asked.held_out
    n_images, most = arguments.images, arguments.per_image
    questions = Questions(
        asked, held_out.triggered[:n_images], held_out.targets[:n_images], arguments.eps, most
    )
    questions.ask(questions.sources)
    start = of_target(subjects, questions)
    PER_IMAGE[name](questions, start, torch.Generator().manual_seed(seed))
    return [(after, questions.success(after)) for after in (*(s for s in STEPS if s < most), most)]


def measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Append a line for every model, seed and attack that is not there yet."""
    subjects = open_subjects(parser, arguments)
    kept = KeptLines(arguments.out / f"{subjects.name}.jsonl")
    budgets = {
        "universal, cold": arguments.max_queries,
        "universal, warm": arguments.warm_queries,
    }
    for seed in arguments.seeds:
        for asked in subjects:
            for name in arguments.attacks:
                about = {
                    "family": subjects.name,
                    "model": asked.model.name,
                    "trigger": asked.trigger,
                    "eps": arguments.eps,
                    "seed": seed,
                    "attack": name,
                    "craft_images": arguments.craft,
                    "queries": budgets.get(name, arguments.per_image),
                }
                if kept.has(about):
                    continue
                began = time.process_time()
                if name in PER_IMAGE:
                    curve = one_by_one(subjects, asked, name, seed, arguments)
                else:
                    warm = name.endswith("warm")
                    curve = universal(subjects, asked, seed, arguments, warm=warm)
                elapsed = round(time.process_time() - began, 1)
                kept.add(about | {"truth": asked.truth, "curve": curve, "cpu_s": elapsed})


def show(folder: Path) -> None:
    """Print a table of each family: success of dormant models / the strongest innocent one."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for line in read_lines(folder):
        groups[line["family"], line["eps"]].append(line)
    for (family, eps), lines in groups.items():
        print(f"\n{family}, eps {eps:g}\n")
        for names, per in ((ATTACKS[:2], "in all"), (tuple(PER_IMAGE), "an image")):
            theirs = [line for line in lines if line["attack"] in names]
            steps = sorted({step for line in theirs for step, _ in line["curve"]})
            print("| queries " + per + " | " + " | ".join(f"{step:,}" for step in steps) + " |")
            print("|---" * (len(steps) + 1) + "|")
            for name in names:
                cells = []
                for step in steps:
                    by_truth: dict[str, list[float]] = defaultdict(list)
                    for line in theirs:
                        if line["attack"] == name and step in (rates := dict(line["curve"])):
                            by_truth[line["truth"]].append(rates[step])
                    if not by_truth["dormant"] or not by_truth["innocent"]:
                        cells.append("")
                        continue
                    most = max(by_truth["innocent"])
                    cells.append(f"{fmean(by_truth['dormant']):.2f} / {most:.2f}")
                if any(cells):
                    print(f"| {name} | " + " | ".join(cells) + " |")
            print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("labels"), help="folder of lines")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=40, help="asked about one by one")
    parser.add_argument("--per-image", type=int, default=500, help="most queries an image")
    parser.add_argument("--max-queries", type=int, default=20_000, help="of a cold search")
    parser.add_argument("--warm-queries", type=int, default=3000, help="of a warm one")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    run(parser, measure, show)


if __name__ == "__main__":
    main()
