"""Objectives and schedules of later universal perturbations against the white box's own.

    python benchmarks/objectives.py demo --out objectives
    bdaudit zoo build examples/families/emoji-patches.toml --out emoji --data EMOJI
    python benchmarks/objectives.py emoji --out objectives
    python benchmarks/objectives.py --table objectives

Every search spends the same number of gradient passes (craft images differentiated, through the
model, over craft images) on the same images from the same start, within the same ball. What a step
needs beside its own gradient, such as a pass to find worse data, is paid from the same budget, so
such a search takes fewer steps.

    standard        the product: sign of the gradient of the smoothed count of images not yet won,
                    steps that shrink from eps to 0
    cross-entropy   the same steps, cross-entropy of the target
    momentum        the same, steps along a decayed sum of normalised gradients (decay .9; MI-FGSM,
                    Dong et al., CVPR 2018)
    aggregated      gradients of mini-batches of 10, each met where the ones before moved delta,
                    summed to one step (SGA, Liu et al., ICCV 2023)
    maximin         images move by up to eps/2, and each weight tensor by up to 1 % of its norm, to
                    where the model without delta is surest of its answers; growing (DM-UAP, Zhang
                    et al., AAAI 2025, arXiv 2503.12793; there ten steps each before every update,
                    here one step, found once, so that it costs one pass in all)
    data            before each step every image moves as far to where the loss with delta is worst
    noised          images moved as far at random, the control of `data`
    generated       delta = eps tanh(G(z)): the weights of a small generator are fitted, z is fixed
                    (as in generative perturbations, Poursaeed et al., CVPR 2018)
    generated start a quarter of the passes so, then sign steps from eps/2 on
    half steps      the standard with steps from eps/2 on, the control of `generated start`
    averaged        the standard's mean delta over its last third

All but cross-entropy lower the product's smoothed count: the schedules of the papers are compared,
not the untargeted losses they were published with.

A line is appended for every model, seed and search; what is there already is not run again.
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
from known_models import Asked, add_arguments, open_subjects, run, share
from torch import Tensor, nn
from torch.func import functional_call

from bdaudit.foundation.progress import finish
from bdaudit.foundation.statistics import probit
from bdaudit.perturbation import Loss, apply_delta, cross_entropy, make_ball, smoothed_failure
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.reactivation.recipes import RECIPES

BATCH = 40


class Budget:
    """Gradient passes left, in images."""

    def __init__(self, n_images: int, passes: int) -> None:
        self.total, self.spent = n_images * passes, 0

    @property
    def done(self) -> float:
        return self.spent / self.total

    def pay(self, n_images: int) -> None:
        self.spent += n_images


class Search:
    """What every search is given: the model, its images, the ball, the random stream, passes."""

    def __init__(self, asked: Asked, eps: float, seed: int, passes: int) -> None:
        self.classifier = asked.classifier
        self.images, self.targets = asked.craft.triggered, asked.craft.targets
        self.ball = make_ball("linf", eps)
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = passes
        self.budget = Budget(len(self.images), passes)
        shape = (1, *self.images.shape[1:])
        self.start = RECIPES["default"].start(shape, self.ball, self.generator)

    def batches(self) -> list[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator)
        return list(order.tensor_split(math.ceil(len(order) / BATCH)))

    def gradient(
        self, delta: Tensor, images: Tensor, targets: Tensor, loss: Loss = smoothed_failure
    ) -> Tensor:
        """Return the loss's gradient in delta, and pay for it."""
        leaf = delta.detach().requires_grad_()
        logits = self.classifier(apply_delta(images, leaf))
        (gradient,) = torch.autograd.grad(loss(logits, targets).mean(), leaf)
        self.budget.pay(len(images))
        return gradient

    def own(self, delta: Tensor, chosen: Tensor, loss: Loss = smoothed_failure) -> Tensor:
        """Return the gradient over the images chosen, as they are."""
        return self.gradient(delta, self.images[chosen], self.targets[chosen], loss)

    def walk(
        self,
        rule: Callable[[Tensor, Tensor], Tensor],
        *,
        start: Tensor | None = None,
        first: float = 1.0,
        keep_from: float = 2.0,
    ) -> Tensor:
        """Step along the sign of what `rule` gives for (delta, chosen images) until all is spent.

        Steps shrink linearly from `first` times eps to 0. The mean of the deltas from the share
        `keep_from` of the search on is returned where there are any, else the last delta.
        """
        delta = self.start if start is None else start
        kept: list[Tensor] = []
        began = self.budget.done
        while self.budget.done < 1:
            for chosen in self.batches():
                left = (1 - self.budget.done) / (1 - began)
                gradient = rule(delta, chosen)
                delta = self.ball.project(delta - first * self.ball.eps * left * gradient.sign())
                if self.budget.done >= keep_from:
                    kept.append(delta)
                if self.budget.done >= 1:
                    break
        return torch.cat(kept).mean(0, keepdim=True) if kept else delta


def standard(search: Search, seed: int) -> Tensor:
    """The product's own, which draws the same start from the same seed."""
    return finish(
        reactivate_whitebox(
            search.classifier,
            search.images,
            search.targets,
            config=WhiteboxConfig(
                eps=search.ball.eps, n_passes=search.passes, batch_size=BATCH, patience=None
            ),
            generator=torch.Generator().manual_seed(seed),
        )
    ).delta


def with_cross_entropy(search: Search, seed: int) -> Tensor:
    return search.walk(lambda *step: search.own(*step, cross_entropy))


def with_momentum(search: Search, seed: int) -> Tensor:
    summed = torch.zeros_like(search.start)

    def rule(delta: Tensor, chosen: Tensor) -> Tensor:
        gradient = search.own(delta, chosen)
        summed.mul_(0.9).add_(gradient / gradient.abs().mean().clamp_min(1e-20))
        return summed

    return search.walk(rule)


def aggregated(search: Search, seed: int) -> Tensor:
    def rule(delta: Tensor, chosen: Tensor) -> Tensor:
        inner, summed = delta, torch.zeros_like(delta)
        length = search.ball.eps * (1 - search.budget.done)
        parts = chosen.split(10)
        for part in parts:
            gradient = search.own(inner, part)
            summed = summed + gradient
            inner = search.ball.project(inner - length / len(parts) * gradient.sign())
        return summed

    return search.walk(rule)


def worse_data(search: Search, delta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """Return the images moved to where the loss is worst, and pay the pass it takes."""
    leaf = images.detach().clone().requires_grad_()
    loss = smoothed_failure(search.classifier(apply_delta(leaf, delta)), targets).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    search.budget.pay(len(images))
    radius = search.ball.eps / 2 * search.budget.done
    return (images + radius * gradient.sign()).clamp(0, 1)


def data_maximising(search: Search, seed: int) -> Tensor:
    def rule(delta: Tensor, chosen: Tensor) -> Tensor:
        images, targets = search.images[chosen], search.targets[chosen]
        return search.gradient(delta, worse_data(search, delta, images, targets), targets)

    return search.walk(rule)


def maximin(search: Search, seed: int) -> Tensor:
    weights = {name: weight.detach() for name, weight in search.classifier.named_parameters()}
    surer = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    parts = []
    for images in search.images.split(BATCH):
        leaf = images.detach().clone().requires_grad_()
        loose = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        logits = functional_call(search.classifier, loose, (leaf,))
        loss = cross_entropy(logits, logits.argmax(1)).sum()
        by_data, *by_weight = torch.autograd.grad(loss, (leaf, *loose.values()), allow_unused=True)
        search.budget.pay(len(images))
        parts.append(-by_data.sign())
        for name, gradient in zip(weights, by_weight, strict=True):
            surer[name] -= 0 if gradient is None else gradient
    sure_data = torch.cat(parts)
    surer = {
        name: weights[name].norm() * way / way.norm().clamp_min(1e-20)
        for name, way in surer.items()
    }

    def rule(delta: Tensor, chosen: Tensor) -> Tensor:
        images, targets = search.images[chosen], search.targets[chosen]
        done = search.budget.done
        moved = {name: weight + 0.01 * done * surer[name] for name, weight in weights.items()}
        shifted = (images + search.ball.eps / 2 * done * sure_data[chosen]).clamp(0, 1)
        leaf = delta.detach().requires_grad_()
        logits = functional_call(search.classifier, moved, (apply_delta(shifted, leaf),))
        (found,) = torch.autograd.grad(smoothed_failure(logits, targets).mean(), leaf)
        search.budget.pay(len(images))
        return found

    return search.walk(rule)


def noised(search: Search, seed: int) -> Tensor:
    def rule(delta: Tensor, chosen: Tensor) -> Tensor:
        images, targets = search.images[chosen], search.targets[chosen]
        drawn = 2 * torch.rand(images.shape, generator=search.generator) - 1
        radius = search.ball.eps / 2 * search.budget.done
        return search.gradient(delta, (images + radius * drawn.sign()).clamp(0, 1), targets)

    return search.walk(rule)


def generate(search: Search, until: float) -> Tensor:
    """Fit a generator until so much of the budget is spent, and return what it makes."""
    n_channels, height, width = search.images.shape[1:]
    with torch.random.fork_rng():
        torch.manual_seed(search.generator.initial_seed())
        layers: list[nn.Module] = []
        for n_in, n_out in ((8, 32), (32, 32)):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
            layers.append(nn.Upsample(scale_factor=2))
        network = nn.Sequential(*layers, nn.Conv2d(32, n_channels, 3, padding=1))
        z = torch.randn(1, 8, math.ceil(height / 4), math.ceil(width / 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def made() -> Tensor:
        drawn: Tensor = network(z)[..., :height, :width]
        return search.ball.eps * torch.tanh(drawn)

    while search.budget.done < until:
        for chosen in search.batches():
            logits = search.classifier(apply_delta(search.images[chosen], made()))
            optimizer.zero_grad()
            smoothed_failure(logits, search.targets[chosen]).mean().backward()
            optimizer.step()
            search.budget.pay(len(chosen))
            if search.budget.done >= until:
                break
    return search.ball.project(made().detach())


def generated(search: Search, seed: int) -> Tensor:
    return generate(search, 1.0)


def generated_start(search: Search, seed: int) -> Tensor:
    return search.walk(search.own, start=generate(search, 0.25), first=0.5)


def half_steps(search: Search, seed: int) -> Tensor:
    return search.walk(search.own, first=0.5)


def averaged(search: Search, seed: int) -> Tensor:
    return search.walk(search.own, keep_from=2 / 3)


SEARCHES: dict[str, Callable[[Search, int], Tensor]] = {
    "standard": standard,
    "cross-entropy": with_cross_entropy,
    "momentum": with_momentum,
    "aggregated": aggregated,
    "data": data_maximising,
    "maximin": maximin,
    "noised": noised,
    "generated": generated,
    "generated start": generated_start,
    "half steps": half_steps,
    "averaged": averaged,
}


def measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Append a line for every model, seed and search that is not there yet."""
    subjects = open_subjects(parser, arguments)
    kept = KeptLines(arguments.out / f"{subjects.name}.jsonl")
    for seed in arguments.seeds:
        for asked in subjects:
            held_out = asked.held_out
            alone = share(asked, held_out.triggered, held_out.targets)
            for name in arguments.searches:
                about = {
                    "family": subjects.name,
                    "model": asked.model.name,
                    "trigger": asked.trigger,
                    "eps": arguments.eps,
                    "seed": seed,
                    "passes": arguments.passes,
                    "craft_images": arguments.craft,
                    "search": name,
                }
                if kept.has(about):
                    continue
                began = time.process_time()
                search = Search(asked, arguments.eps, seed, arguments.passes)
                delta = SEARCHES[name](search, seed)
                assert float(search.ball.norm(delta)) <= arguments.eps
                scores = {
                    "truth": asked.truth,
                    "alone": alone,
                    "success": share(asked, held_out.triggered, held_out.targets, delta),
                    "craft": share(asked, search.images, search.targets, delta),
                    "cpu_s": round(time.process_time() - began, 1),
                }
                kept.add(about | scores)


def rates(lines: list[dict[str, Any]], truth: str) -> dict[tuple[str, str, int], float]:
    """Return success by model, trigger and seed."""
    return {
        (line["model"], line["trigger"], line["seed"]): line["success"]
        for line in lines
        if line["truth"] == truth
    }


def margins(
    lines: list[dict[str, Any]], everyone: set[tuple[str, str]]
) -> dict[tuple[str, str, int], float]:
    """Return by dormant model and seed how many deviates it is above the strongest innocent.

    Where one of `everyone`, innocent models by trigger, has not been asked yet there is no margin.
    """
    innocent = rates(lines, "innocent")
    found = {}
    for (model, trigger, seed), rate in rates(lines, "dormant").items():
        wanted = [(name, under, seed) for name, under in everyone if under == trigger]
        if wanted and all(key in innocent for key in wanted):
            strongest = max(innocent[key] for key in wanted)
            found[model, trigger, seed] = probit(rate, N_SCORED) - probit(strongest, N_SCORED)
    return found


N_SCORED = 500
"""Images behind a rate, about, which keeps the deviate of 0 finite."""


def show(folder: Path) -> None:
    """Print a table of each family."""
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = defaultdict(list)
    for line in read_lines(folder):
        groups[line["family"], line["eps"], line["passes"]].append(line)
    for (family, eps, passes), lines in groups.items():
        by_search = {name: [line for line in lines if line["search"] == name] for name in SEARCHES}
        everyone = {(model, trigger) for model, trigger, _ in rates(lines, "innocent")}
        own = rates(by_search["standard"], "dormant")
        own_margin = margins(by_search["standard"], everyone)
        print(f"\n{family}, eps {eps:g}, {passes} passes\n")
        print("| search | dormant | ahead | innocent, mean and most | margin | ahead | CPU s |")
        print("|---|---|---|---|---|---|---|")
        for name, theirs in by_search.items():
            woken, innocent = rates(theirs, "dormant"), rates(theirs, "innocent")
            beyond = margins(theirs, everyone)
            if not woken or not beyond:
                continue
            ahead = sum(rate > own.get(key, 1) for key, rate in woken.items())
            further = sum(value > own_margin.get(key, 99) for key, value in beyond.items())
            print(
                f"| {name} | {fmean(woken.values()):.3f} | {ahead} of {len(woken)} "
                f"| {fmean(innocent.values()):.3f} {max(innocent.values()):.3f} "
                f"| {fmean(beyond.values()):+.2f} | {further} of {len(beyond)} "
                f"| {fmean(line['cpu_s'] for line in theirs):.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("objectives"), help="folder of lines")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--passes", type=int, default=12)
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    run(parser, measure, show)


if __name__ == "__main__":
    main()
