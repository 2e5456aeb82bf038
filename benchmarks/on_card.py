"""What bdaudit makes of a card, against the bare passes that the same work needs.

    python benchmarks/on_card.py [--device cuda] [--only passes bec training audit]

All in one run on one card, one line a figure, each as a ratio with the limit it is to keep:

* passes: a pass of the white-box attack, eight searches at once as an audit makes them, against a
  loop that does nothing but gather, forward and input gradient, as a CUDA graph at the better of
  two mini-batches. And what a search costs besides its passes.
* bec: the coefficient with its interval, against the four forward passes that it needs.
* training: a step of training as it is replayed, against the same step taken from Python.
* audit: a whole audit of ResNet-50, against the bare passes of all that it did: gradient passes,
  forward passes for scoring, steps of relearning.

Weights and images are random: what is measured is the work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import bec_cost
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import bdaudit
from bdaudit.defenses.tuning import TuningConfig, tune
from bdaudit.foundation.progress import finish
from bdaudit.models.preactresnet import preactresnet18
from bdaudit.precision import autocasting
from bdaudit.reactivation import Search, WhiteboxConfig, WhiteboxResult, reactivate_together
from bdaudit.relearning import RelearnConfig
from bdaudit.settings import Precision
from bdaudit.triggers import AllToOne, Patch, Trigger
from bdaudit.zoo.training import gradients_in

SIZES = {"preactresnet18": 32, "resnet50": 224, "vit_b_16": 224}
N_AT_ONCE = 8
RELEARN = RelearnConfig(learning_rates=(0.0003,), draws=2)
"""Of the audit: few, since networks of random weights are taught at every rate there is."""


@dataclass(frozen=True)
class Bench:
    """What is measured where, on how much."""

    device: torch.device
    images: int
    passes: int
    precision: Precision

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def now(self) -> float:
        if self.on_card:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """Return the median time of work, which was done once before."""
        work()
        times = []
        for _ in range(repeats):
            started = self.now()
            work()
            times.append(self.now() - started)
        return statistics.median(times)

    def network(self, arch: str, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        made = (
            preactresnet18(10, width=64)
            if arch == "preactresnet18"
            else torchvision.models.get_model(arch, weights=None, num_classes=10)
        )
        return made.eval().requires_grad_(False).to(self.device)


def row(what: str, ratio: float, limit: float | None, note: str) -> None:
    kept = "" if limit is None else f"limit {limit:<5g}"
    print(f"{what:44} {ratio:6.2f}  {kept:12} {note}", flush=True)


# -- passes ---------------------------------------------------------------------------------------


def bare_passes(
    bench: Bench, model: nn.Module, images: Tensor, targets: Tensor, size: int
) -> tuple[float, float]:
    """Return seconds a pass of a loop from Python, and of the same loop as a CUDA graph."""
    images = images.contiguous(memory_format=torch.channels_last)
    delta = torch.zeros_like(images[:1])
    chosen = torch.zeros(size, dtype=torch.int64, device=bench.device)

    def step() -> None:
        leaf = delta.detach().requires_grad_()
        with autocasting(bench.device, bench.precision):
            logits = model((images.index_select(0, chosen) + leaf).clamp(0.0, 1.0))
        loss = functional.cross_entropy(logits.float(), targets.index_select(0, chosen))
        (gradient,) = torch.autograd.grad(loss, leaf)
        delta.sub_(1e-4 * gradient.sign()).clamp_(-0.02, 0.02)

    def a_pass(take: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for indices in torch.randperm(bench.images).to(bench.device).split(size):
                chosen.copy_(indices)
                take()

        return run

    eager = bench.seconds(a_pass(step), 2)
    if not bench.on_card:
        return eager, eager
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return eager, bench.seconds(a_pass(graph.replay), 3)


def our_passes(
    bench: Bench, model: nn.Module, images: Tensor, targets: Tensor, n_passes: int
) -> tuple[float, float, set[str]]:
    """Return seconds a pass of one search, seconds a search takes besides, and what was noted."""
    config = WhiteboxConfig(
        eps=0.01,
        n_passes=n_passes,
        patience=None,
        autocast="bf16" if bench.precision == "bfloat16" else None,
    )
    searches = [
        Search(
            triggered=images,
            targets=targets,
            config=replace(config, eps=0.005 * (number + 1)),
            generator=torch.Generator().manual_seed(number),
        )
        for number in range(N_AT_ONCE)
    ]
    ticks = [bench.now()]
    found = finish(reactivate_together(model, searches), lambda _: ticks.append(bench.now()))
    whole = bench.now() - ticks[0]
    # The first passes choose kernels and record; the last tick is of the scoring.
    a_pass = statistics.median(after - before for before, after in pairwise(ticks[2:-1]))
    diagnostics = [
        d for each in found if isinstance(each, WhiteboxResult) for d in each.diagnostics
    ]
    notes = {d.message for d in diagnostics if d.code == "no_cuda_graph"}
    return a_pass / N_AT_ONCE, (whole - n_passes * a_pass) / N_AT_ONCE, notes


def measure_passes(bench: Bench) -> dict[str, float]:
    """Return the seconds of the best bare pass, by network."""
    best = {}
    for arch, size in SIZES.items():
        model = bench.network(arch)
        images = torch.rand(bench.images, 3, size, size, device=bench.device)
        targets = torch.randint(0, 10, (bench.images,)).to(bench.device)  # so never all won
        bare = {
            batch: bare_passes(bench, model, images, targets, batch)
            for batch in (bench.images // 10, bench.images // 2)
        }
        best[arch] = min(graph for _, graph in bare.values())
        eager = bare[bench.images // 10][0]
        a_pass, besides, notes = our_passes(bench, model, images, targets, bench.passes)
        row(
            f"white box, {arch}",
            a_pass / best[arch],
            1.15,
            f"{1e3 * a_pass:.1f} ms a pass, bare graph {1e3 * best[arch]:.1f}, bare loop "
            f"{1e3 * eager:.1f}; a search besides {besides / a_pass:.1f} passes {' '.join(notes)}",
        )
    return best


# -- BEC ------------------------------------------------------------------------------------------


def measure_bec(bench: Bench) -> None:
    for arch, size in SIZES.items():
        models = bec_cost.make_models(arch, 64)
        for model in models:
            model.to(bench.device)
        clean, triggered = (
            images.to(bench.device) for images in bec_cost.make_images(bench.images, size)
        )
        # A ViT in float32 takes many times as long, and says no more.
        others = () if arch == "vit_b_16" else ("float32",)
        for precision in dict.fromkeys((*others, bench.precision)):
            bare = partial(
                bec_cost.run_bare,
                models,
                clean,
                triggered,
                order=torch.channels_last,
                bf16=precision == "bfloat16",
            )
            ours = partial(
                bec_cost.run_bdaudit, models, clean, triggered, 256, config={"precision": precision}
            )
            bare_s = min(bench.seconds(partial(bare, batch), 2) for batch in (64, 256))
            ours_s = bench.seconds(ours, 2)
            row(
                f"BEC, {arch}, {precision}",
                ours_s / bare_s,
                1.3,
                f"{ours_s:.3f} s, bare passes at their better batch {bare_s:.3f}",
            )


# -- training -------------------------------------------------------------------------------------


def measure_training(bench: Bench) -> None:
    for width, batch in ((8, 32), (16, 128), (64, 128)):
        n = 20 * batch
        torch.manual_seed(0)
        images, labels = torch.rand(n, 3, 32, 32), torch.randint(0, 10, (n,))
        found = {}
        for replayed in (False, True):
            steps = tune(
                preactresnet18(10, width=width).to(bench.device),
                images,
                labels,
                config=TuningConfig(n_epochs=4, batch_size=batch),
                generator=torch.Generator().manual_seed(0),
                title="training",
                gradients=gradients_in(bench.precision),
                replayed=replayed,
            )
            ticks = [bench.now() for _ in steps]
            found[replayed] = (ticks[-1] - ticks[-2]) / 20
        row(
            f"training, width {width}, mini-batches of {batch}",
            found[True] / found[False],
            None,
            f"{1e3 * found[True]:.2f} ms a step, from Python {1e3 * found[False]:.2f}",
        )


# -- a whole audit --------------------------------------------------------------------------------


def measure_audit(bench: Bench, n_passes: int) -> None:
    arch, size = "resnet50", SIZES["resnet50"]
    n_craft = n_held_out = bench.images
    n = n_craft + n_held_out
    images = torch.rand(n, 3, size, size)
    labels = torch.arange(n) % 10
    models = [bench.network(arch, seed) for seed in range(5)]
    steps: dict[str, float] = {}
    settings = bdaudit.AuditSettings(
        passes=n_passes,
        stand_ins=0,
        pictures=False,
        relearn=RELEARN,
        compute=bdaudit.ComputeSettings(device=str(bench.device), precision=bench.precision),
        split=bdaudit.SplitSettings(craft=n_craft, held_out=n_held_out),
    )
    started = bench.now()
    record = bdaudit.audit(
        models[1],
        original=models[0],
        reference=models[2:],
        data=(images, labels),
        trigger=Trigger(
            transform=Patch(image=torch.ones(3, 9, 9), offset=(1, 1)), rule=AllToOne(0)
        ),
        settings=settings,
    )
    whole = bench.now() - started
    for step in record.steps:
        kind = step.name.split(" (")[0]
        steps[kind] = steps.get(kind, 0.0) + step.elapsed_s
    bare = bare_work(bench, models[1], images[:n_craft], record)
    row(
        f"audit, {arch}, {n_passes} passes an attack",
        whole / bare,
        1.3,
        f"{whole:.1f} s, bare passes {bare:.1f}; "
        + ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in steps.items()),
    )


def bare_work(bench: Bench, model: nn.Module, images: Tensor, record: Any) -> float:
    """Return the seconds that the bare passes of an audit's work take."""
    images = images.to(bench.device)
    targets = torch.zeros(len(images), dtype=torch.int64, device=bench.device)
    gradient_pass = min(
        bare_passes(bench, model, images, targets, batch)[1]
        for batch in (len(images) // 10, len(images) // 2)
    ) / len(images)

    def forward() -> None:
        with torch.inference_mode(), autocasting(bench.device, bench.precision):
            for batch in images.split(256):
                model(batch.contiguous(memory_format=torch.channels_last))

    forward_pass = bench.seconds(forward) / len(images)
    n_craft = n_held_out = len(images)
    gradients = sum(run.gradient_passes or 0.0 for run in record.runs) * n_craft
    scored = 2 * n_held_out * len(record.runs) + 2 * n_held_out * len(record.models)
    bec = 500 * (2 + 1 + 3)
    relearn = record.relearning
    taught, asked, a_step = 0, 0, 0.0
    if relearn is not None:
        trainings = len(relearn.curves) * RELEARN.draws
        taught = trainings * RELEARN.steps[-1]
        asked = trainings * len(RELEARN.steps) * 2 * min(n_held_out, RELEARN.n_held_out)
        a_step = training_step(bench, model, images[: RELEARN.shots + RELEARN.n_clean])
    return gradient_pass * gradients + forward_pass * (scored + bec + asked) + a_step * taught


def training_step(bench: Bench, model: nn.Module, images: Tensor) -> float:
    """Return the seconds of one bare step of training on `images`."""
    model.requires_grad_(True)
    targets = torch.zeros(len(images), dtype=torch.int64, device=bench.device)

    def step() -> None:
        with autocasting(bench.device, bench.precision):
            logits = model(images)
        functional.cross_entropy(logits.float(), targets).backward()
        model.zero_grad()

    seconds = bench.seconds(step)
    model.requires_grad_(False)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--passes", type=int, default=7, help="of the white box, 6 or more")
    parser.add_argument("--audit-passes", type=int, default=4)
    parts = ("passes", "bec", "training", "audit")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    on_card = device.type == "cuda"
    bench = Bench(device, options.images, options.passes, "bfloat16" if on_card else "float32")
    name = torch.cuda.get_device_name(device) if on_card else "the processor"
    print(f"{name}, torch {torch.__version__}, {bench.images} images, {bench.precision}\n")
    print(f"{'':44} {'ratio':>6}")
    if "passes" in options.only:
        measure_passes(bench)
    if "bec" in options.only:
        measure_bec(bench)
    if "training" in options.only:
        measure_training(bench)
    if "audit" in options.only:
        measure_audit(bench, options.audit_passes)


if __name__ == "__main__":
    main()
