"""What the white-box attack costs, and what it reaches for the money.

In one run, on one machine and one set of files:

(a) the time of one default step against a bare forward and input-gradient backward pass of the
    same mini-batches, timed in turn so that both meet the same machine;
(b) held-out ASR of the default after 24 gradient passes and of the research optimiser (projected
    SGD, learning rate 0.05) after 24, 100 and 400, at every eps.

    python benchmarks/whitebox_cost.py
    python benchmarks/whitebox_cost.py dormant.safetensors removed.safetensors \
        --data sample.npz --trigger trigger.toml --arch bdaudit/preactresnet18_w8

Without files it takes the embedded demo's dormant model. (b) takes long, most of it for the
research optimiser's 400 passes: `--skip-ladder` leaves it out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.data import load_sample, split_sample
from bdaudit.foundation.progress import finish
from bdaudit.models import LoadedModel, load_model
from bdaudit.perturbation import cross_entropy
from bdaudit.reactivation import OptimizerName, WhiteboxConfig, reactivate_whitebox
from bdaudit.scoring import predict
from bdaudit.triggers import Poisoned, poison, read_trigger

DEMO = Path(bdaudit.__file__).parent / "demo_files"
LADDER = {"linf": (0.01, 0.02, 0.03, 0.05), "l2": (0.25, 0.5, 0.75, 1.25)}


def main() -> None:
    """Print both tables."""
    options = _parse()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    models, craft, held_out = load_inputs(options, device)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), {device}; "
        f"{len(craft)} craft and {len(held_out)} held-out images, {len(options.seeds)} seed(s)"
    )
    if not options.skip_cost:
        report_step_cost(models[0], craft, device, options)
    if not options.skip_ladder:
        for model in models:
            report_ladder(model, craft, held_out, device, options)


def load_inputs(
    options: argparse.Namespace, device: torch.device
) -> tuple[list[LoadedModel], Poisoned, Poisoned]:
    """Open models, sample and trigger by path, and split off the craft images."""
    sample = load_sample(options.data)
    _, channels, height, width = sample.images.shape
    models = [
        load_model(
            path,
            name=path.stem,
            arch=options.arch,
            mean=options.mean,
            std=options.std,
            fallback_image_shape=(channels, height, width),
            device=device,
        )
        for path in options.models
    ]
    trigger = read_trigger(options.trigger)
    halves = split_sample(
        sample, n_craft=options.n_craft, n_held_out=options.n_held_out, seed=options.split_seed
    )
    num_classes = models[0].num_classes
    return (
        models,
        poison(halves.craft, trigger, num_classes),
        poison(halves.held_out, trigger, num_classes),
    )


def report_step_cost(
    model: LoadedModel, craft: Poisoned, device: torch.device, options: argparse.Namespace
) -> None:
    """Print the cost ratios of a default step, and of a whole search, to bare passes."""
    config = WhiteboxConfig(
        eps=0.02,
        patience=None,
        batch_size=options.batch_size,
        channels_last=options.channels_last,
    )
    classifier = model.classifier
    _bare_pass(classifier, craft, config, device)
    _timed_search(classifier, craft, config, device)
    step_ratios, search_ratios = [], []
    for _ in range(options.rounds):
        bare = statistics.median(
            _bare_pass(classifier, craft, config, device) for _ in range(config.n_passes)
        )
        whole, per_pass = _timed_search(classifier, craft, config, device)
        step_ratios.append(statistics.median(per_pass) / bare)
        search_ratios.append(whole / config.n_passes / bare)
    print(f"\n(a) cost on {model.name}, mini-batches of at most {config.batch_size}")
    for what, ratios in (("one step", step_ratios), ("whole search, a pass", search_ratios)):
        print(
            f"    {what:22s} {statistics.median(ratios):.3f} x bare forward + input gradient "
            f"(rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
        )


def _bare_pass(
    classifier: nn.Module, craft: Poisoned, config: WhiteboxConfig, device: torch.device
) -> float:
    """Time one pass of forward and input-gradient backward over the craft images, in seconds."""
    images, targets = craft.triggered.to(device), craft.targets.to(device)
    n_batches = -(-len(craft) // config.batch_size)
    started = _now(device)
    for batch, goal in zip(
        images.tensor_split(n_batches), targets.tensor_split(n_batches), strict=True
    ):
        leaf = batch.detach().requires_grad_()
        torch.autograd.grad(cross_entropy(classifier(leaf), goal).mean(), leaf)
    return _now(device) - started


def _timed_search(
    classifier: nn.Module, craft: Poisoned, config: WhiteboxConfig, device: torch.device
) -> tuple[float, list[float]]:
    """Return the seconds of a whole search and of each of its passes but the first."""
    ticks = [_now(device)]
    finish(
        reactivate_whitebox(
            classifier,
            craft.triggered,
            craft.targets,
            config=config,
            generator=torch.Generator().manual_seed(0),
        ),
        lambda _: ticks.append(_now(device)),
    )
    # The first interval holds the probe of the model, the last one the scoring of delta.
    passes = [end - start for start, end in pairwise(ticks[1:-1])]
    return _now(device) - ticks[0], passes


def _now(device: torch.device) -> float:
    """Read the wall clock on a GPU, and this process's CPU seconds on a machine it may share."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def report_ladder(
    model: LoadedModel,
    craft: Poisoned,
    held_out: Poisoned,
    device: torch.device,
    options: argparse.Namespace,
) -> None:
    """Print held-out ASR by eps, one column a search."""
    searches: list[tuple[OptimizerName, int]] = [("default", options.default_passes)]
    searches += [("research", n_passes) for n_passes in options.research_passes]
    nothing = torch.zeros_like(held_out.triggered[:1])
    alone = _asr(model.classifier, held_out, nothing, device)
    print(f"\n(b) {model.name}: held-out ASR, {options.norm}; the trigger alone {alone:.4f}")
    print("      eps  " + "  ".join(f"{name}@{n_passes}".rjust(13) for name, n_passes in searches))
    for eps in options.eps or LADDER[options.norm]:
        cells = []
        for optimizer, n_passes in searches:
            config = WhiteboxConfig(
                eps=eps,
                norm=options.norm,
                optimizer=optimizer,
                n_passes=n_passes,
                patience=None,
                batch_size=options.batch_size,
            )
            rates = [
                _asr(
                    model.classifier,
                    held_out,
                    _search(model.classifier, craft, config, seed),
                    device,
                )
                for seed in options.seeds
            ]
            cells.append(_cell(rates))
        print(f"    {eps:5g}  " + "  ".join(cell.rjust(13) for cell in cells), flush=True)


def _search(classifier: nn.Module, craft: Poisoned, config: WhiteboxConfig, seed: int) -> Tensor:
    result = finish(
        reactivate_whitebox(
            classifier,
            craft.triggered,
            craft.targets,
            config=config,
            generator=torch.Generator().manual_seed(seed),
        )
    )
    return result.delta


def _asr(classifier: nn.Module, held_out: Poisoned, delta: Tensor, device: torch.device) -> float:
    predicted = predict(classifier, held_out.triggered, batch_size=256, device=device, delta=delta)
    return float((predicted == held_out.targets).float().mean())


def _cell(rates: list[float]) -> str:
    """Mean over seeds, and half the range where there are several."""
    mean = statistics.fmean(rates)
    if len(rates) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f}±{(max(rates) - min(rates)) / 2:.4f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost and yield of the white-box attack.")
    parser.add_argument(
        "models", nargs="*", type=Path, default=[DEMO / "dormant.safetensors"], help="checkpoints"
    )
    parser.add_argument("--data", type=Path, default=DEMO / "clean.npz", help="labelled sample")
    parser.add_argument("--trigger", type=Path, default=DEMO / "trigger.toml")
    parser.add_argument("--arch", help="architecture, where the file does not say")
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--norm", choices=sorted(LADDER), default="linf")
    parser.add_argument("--eps", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--n-craft", type=int, default=400)
    parser.add_argument("--n-held-out", type=int)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--default-passes", type=int, default=24)
    parser.add_argument("--research-passes", type=int, nargs="*", default=[24, 100, 400])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction)
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--skip-ladder", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
