"""What the backdoor existence coefficient costs, beside the forward passes it needs.

    python benchmarks/bec_cost.py --width 64 --images 500
    python benchmarks/bec_cost.py --device cuda --arch resnet50 --only 'bare*' 'bdaudit*' --bfloat16

Every variant runs in a process of its own, so that its peak memory is its own, and the variants
take turns, `--repeats` times, so that a busy machine disturbs them alike. What is compared:

* bare passes: A on clean, A, D and C on triggered images, plain module calls, nothing kept;
* the research recipe, written plainly for this comparison: hook every convolution, keep all
  activations of the three models, write them to disk and read them back, centred Gram matrices of
  the top channels at three shares;
* bdaudit's measurement, interval included.

On a card models lie there, as in an audit; so do the images of the bare passes, while bdaudit sends
its own. Everything is run once before it is timed, and figures to read are those of the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.foundation.progress import finish
from bdaudit.models.preactresnet import preactresnet18

SHARES = (0.05, 0.10, 0.20)

Models = tuple[nn.Module, nn.Module, nn.Module]


SIZES = {"preactresnet18": 32, "resnet50": 224, "vit_b_16": 224}


def make_models(arch: str, width: int) -> Models:
    """Three random networks: an original, a copy moved a little, and an unrelated one."""
    torch.manual_seed(0)

    def fresh() -> nn.Module:
        if arch == "preactresnet18":
            return preactresnet18(10, width=width).eval()
        made: nn.Module = torchvision.models.get_model(arch, weights=None).eval()
        return made

    original, defended, reference = fresh(), fresh(), fresh()
    defended.load_state_dict(original.state_dict())
    with torch.no_grad():
        for parameter in defended.parameters():
            if parameter.ndim == 4:
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return original, defended, reference


def make_images(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Noise images and the same with a white patch."""
    clean = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    triggered = clean.clone()
    triggered[:, :, -3:, -3:] = 1.0
    return clean, triggered


@torch.inference_mode()
def run_nothing(models: Models, clean: Tensor, triggered: Tensor, batch_size: int) -> None:
    """Load everything and stop: the memory that every variant starts from."""
    models[0](clean[:1])


@torch.inference_mode()
def run_bare(
    models: Models,
    clean: Tensor,
    triggered: Tensor,
    batch_size: int,
    *,
    order: torch.memory_format,
    bf16: bool = False,
) -> None:
    """Run the four forward passes and keep nothing."""
    original, defended, reference = models
    passes = (original, clean), (original, triggered), (defended, triggered), (reference, triggered)
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=bf16):
        for model, images in passes:
            for batch in torch.split(images, batch_size):
                model(batch.contiguous(memory_format=order))


@torch.inference_mode()
def run_recipe(models: Models, clean: Tensor, triggered: Tensor, batch_size: int) -> float:
    """Keep, write, read back and compare the activations of all convolutions."""

    def activations(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        kept: dict[str, list[Tensor]] = {}

        def keep(name: str, module: nn.Module, args: object, output: Tensor) -> None:
            kept.setdefault(name, []).append(output)

        handles = [
            module.register_forward_hook(partial(keep, name))
            for name, module in model.named_modules()
            if name.startswith("layer") and name.endswith(("conv1", "conv2"))
        ]
        for batch in torch.split(images, batch_size):
            model(batch)
        for handle in handles:
            handle.remove()
        return {name: torch.cat(parts) for name, parts in kept.items()}

    def centred_gram(maps: Tensor, channels: Tensor) -> Tensor:
        flat = maps[:, channels].flatten(1)
        gram = flat @ flat.T
        return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()

    def cka(first: Tensor, second: Tensor) -> float:
        return float((first * second).sum() / (first.norm() * second.norm()))

    original, defended, reference = models
    before, after = activations(original, clean), activations(original, triggered)
    tops = {}
    for name, maps in after.items():
        norms = (
            maps.flatten(2).norm(dim=2).mean(0) + before[name].flatten(2).norm(dim=2).mean(0)
        ) / 2
        tops[name] = ((maps - before[name]).flatten(2).norm(dim=2).mean(0) / norms).argsort(
            descending=True
        )
    del before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        torch.save(after, path / "original.pt")
        torch.save(activations(defended, triggered), path / "defended.pt")
        torch.save(activations(reference, triggered), path / "reference.pt")
        del after
        stored = [
            torch.load(path / f"{name}.pt", weights_only=True)
            for name in ("original", "defended", "reference")
        ]
        coefficients = {}
        for share in SHARES:
            values = []
            for name, order in tops.items():
                top = order[: max(1, int(share * len(order)))]
                own, theirs, innocent = (centred_gram(maps[name], top) for maps in stored)
                floor = cka(innocent, own)
                values.append((cka(theirs, own) - floor) / (1 - floor))
            coefficients[share] = statistics.fmean(values)
    return coefficients[0.10]


def run_bdaudit(
    models: Models, clean: Tensor, triggered: Tensor, batch_size: int, *, config: dict[str, Any]
) -> float | None:
    """Measure the coefficient as the command line does."""
    original, defended, reference = models
    steps = existence_coefficient(
        original,
        defended,
        [("reference", reference)],
        clean=clean,
        triggered=triggered,
        config=ExistenceConfig(batch_size=batch_size, n_samples=len(clean), **config),
        generator=torch.Generator().manual_seed(0),
    )
    return finish(steps)[0].value


BARE_BFLOAT16 = "bare passes, bfloat16"

VARIANTS: dict[str, Callable[[Models, Tensor, Tensor, int], float | None]] = {
    "nothing": run_nothing,
    "bare passes": partial(run_bare, order=torch.contiguous_format),
    "bare passes, channels-last": partial(run_bare, order=torch.channels_last),
    BARE_BFLOAT16: partial(run_bare, order=torch.channels_last, bf16=True),
    "research recipe": run_recipe,
    "bdaudit": partial(run_bdaudit, config={}),
    "bdaudit, no interval": partial(run_bdaudit, config={"n_bootstrap": 0}),
    "bdaudit, channels-first": partial(run_bdaudit, config={"channels_last": False}),
    "bdaudit, bfloat16": partial(run_bdaudit, config={"precision": "bfloat16"}),
}


def measure(variant: str, args: argparse.Namespace) -> None:
    """Run one variant in this process and print its figures as JSON."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    on_card = device.type == "cuda"
    models = make_models(args.arch, args.width)
    for model in models:
        model.to(device)
    clean, triggered = make_images(args.images, SIZES[args.arch])
    if not variant.startswith("bdaudit"):
        clean, triggered = clean.to(device), triggered.to(device)
    for model in models:  # warm up: kernels are chosen on first use
        run_nothing((model, model, model), clean[:1].to(device), triggered, args.batch_size)
    if on_card:
        VARIANTS[variant](models, clean, triggered, args.batch_size)
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    value = VARIANTS[variant](models, clean, triggered, args.batch_size)
    if on_card:
        torch.cuda.synchronize()
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        # Linux counts in KiB, macOS in bytes.
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20
        if on_card
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "value": value,
    }
    print(json.dumps(figures))


def run_in_own_process(variant: str, arguments: list[str]) -> dict[str, float]:
    """Start this file again for one variant."""
    command = [sys.executable, __file__, *arguments, "--variant", variant]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Parse the options, run every variant, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=SIZES, default="preactresnet18")
    parser.add_argument("--width", type=int, default=64, help="channels of its first stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="also the bfloat16 passes")
    parser.add_argument("--only", nargs="+", default=["*"], help="shell patterns of variants")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        measure(args.variant, args)
        return
    wanted = [
        name
        for name in VARIANTS
        if (args.bfloat16 or "bfloat16" not in name)
        and (name != BARE_BFLOAT16 or args.device != "cpu")  # where it takes many minutes
        and (
            name in ("nothing", "bare passes")  # with which the others are compared
            or any(fnmatchcase(name, pattern) for pattern in args.only)
        )
    ]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for _ in range(args.repeats):
        for name in wanted:
            runs[name].append(run_in_own_process(name, sys.argv[1:]))
    print_table(runs, args)


def print_table(runs: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print medians over the repeats, ratios to the bare passes, and memory above the start."""

    def middle(name: str, figure: str) -> float:
        return statistics.median(run[figure] for run in runs[name])

    width = f", width {args.width}" if args.arch == "preactresnet18" else ""
    where = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{args.threads} thread(s), {platform.processor() or platform.machine()}"
    )
    size = SIZES[args.arch]
    print(
        f"{args.arch}{width}, {args.images} images {size}x{size}, batches of {args.batch_size}, "
        f"torch {torch.__version__}, {where}; medians of {args.repeats}\n"
    )
    print(f"{'':28} {'CPU s':>7} {'ratio':>6} {'wall s':>7} {'ratio':>6} {'peak MiB':>9}  BEC")
    for name in runs:
        if name == "nothing":
            continue
        cpu, wall = middle(name, "cpu_s"), middle(name, "wall_s")
        peak = middle(name, "peak_mib") - middle("nothing", "peak_mib")
        value = runs[name][0]["value"]
        alike = "bfloat16" in name and BARE_BFLOAT16 in runs
        bare = BARE_BFLOAT16 if alike else "bare passes"
        print(
            f"{name:28} {cpu:7.2f} {cpu / middle(bare, 'cpu_s'):6.2f} "
            f"{wall:7.2f} {wall / middle(bare, 'wall_s'):6.2f} {peak:9.0f}  "
            + ("" if value is None else f"{value:.4f}")
        )
    print(
        "\nratio: to the bare passes, those in bfloat16 where they were run; peak: memory above "
        "models and images"
    )


if __name__ == "__main__":
    main()
