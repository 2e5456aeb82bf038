"""What the query search costs: images asked about until 50 % and 90 % of the white-box ASR.

In one run, on the same files, craft images and seeds: the white box (default settings) as the
yardstick, then query searches that only ask the same model:

* the research schedule (universal Square search) from scores;
* the default without surrogates ("cold"), from scores and from labels;
* the default with surrogates made from the suspected original ("warm"), from scores and labels.

Every rate is on held-out images, which cost no query of the search. A search is scored where it
would have stood after growing numbers of queries, a quarter apart, so a figure in the table is
right to a quarter.

    python benchmarks/query_cost.py --eps 0.03 --seeds 0 1 2 --max-queries 20000 --json out.json

By default the model is the demonstration's dormant one. With --json every search is kept as soon as
it is done, and one that is there already is not run again, so that searches with budgets of their
own can be added by further runs; `benchmarks/plot_query_cost.py` draws and tabulates them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.data import Sample, load_sample, split_sample
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, LoadedModel, load_model
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.reactivation.query import QueryResult, reactivate_query
from bdaudit.reactivation.query_config import QueryConfig
from bdaudit.relatives.surrogates import make_surrogates
from bdaudit.scoring import predict, predict_logits
from bdaudit.triggers import Poisoned, poison, read_trigger

DEMO = Path(bdaudit.__file__).parent / "demo_files"
SEARCHES = {
    "research, scores": ("research", "scores", False),
    "cold, scores": ("default", "scores", False),
    "cold, labels": ("default", "labels", False),
    "warm, scores": ("default", "scores", True),
    "warm, labels": ("default", "labels", True),
}


def main() -> None:
    """Print one table an eps."""
    options = _parse()
    torch.set_num_threads(options.threads)
    model, original, craft_sample, craft, held_out = load_inputs(options)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s); "
        f"{model.name}: {len(craft)} craft and {len(held_out)} held-out images, at most "
        f"{options.max_queries} queries, seeds {options.seeds}"
    )
    kept = Kept(options.json)
    for eps in options.eps:
        for seed in options.seeds:
            report(model, original, craft_sample, craft, held_out, eps, seed, options, kept)


def load_inputs(
    options: argparse.Namespace,
) -> tuple[LoadedModel, LoadedModel, Sample, Poisoned, Poisoned]:
    """Open both models, sample and trigger, and split off the craft images."""
    sample = load_sample(options.data)
    _, channels, height, width = sample.images.shape
    model, original = (
        load_model(
            path, name=path.stem, arch=options.arch, fallback_image_shape=(channels, height, width)
        )
        for path in (options.model, options.original)
    )
    if options.bf16:
        model, original = in_bfloat16(model), in_bfloat16(original)
    trigger = read_trigger(options.trigger)
    halves = split_sample(sample, n_craft=options.n_craft, n_held_out=None, seed=0)
    return (
        model,
        original,
        halves.craft,
        poison(halves.craft, trigger, model.num_classes),
        poison(halves.held_out, trigger, model.num_classes),
    )


class _Bfloat16Classifier(Classifier):
    """Runs its convolutions in bfloat16, whoever calls it."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return super().forward(images.contiguous(memory_format=torch.channels_last)).float()


def in_bfloat16(model: LoadedModel) -> LoadedModel:
    """Return the model, and with it whatever is copied from it, run in bfloat16."""
    old = model.classifier
    assert isinstance(old, Classifier)
    classifier = _Bfloat16Classifier(
        old.network, mean=old.mean.flatten().tolist(), std=old.std.flatten().tolist()
    )
    return replace(
        model,
        classifier=classifier.to(memory_format=torch.channels_last).eval().requires_grad_(False),
    )


def report(
    model: LoadedModel,
    original: LoadedModel,
    craft_sample: Sample,
    craft: Poisoned,
    held_out: Poisoned,
    eps: float,
    seed: int,
    options: argparse.Namespace,
    kept: Kept,
) -> None:
    """Print what each search reaches with one seed, and after how many queries."""
    about = {"model": str(model.weights_sha256)[:12], "eps": eps, "seed": seed}
    about |= {"n_craft": len(craft), "bf16": options.bf16}
    missing = [
        name
        for name in options.searches
        if not kept.has({**about, "search": name, "max_queries": options.max_queries})
    ]
    if not missing:
        return
    yardstick = kept.find(about)
    if yardstick is None:
        white = asr(model.classifier, held_out, whitebox_delta(model, craft, eps, seed, options))
        alone = asr(model.classifier, held_out, torch.zeros_like(held_out.triggered[:1]))
    else:
        white, alone = yardstick["white"], yardstick["alone"]
    print(f"\neps {eps:g}, seed {seed}: white box {white:.3f}, the trigger alone {alone:.3f}")
    print("    search              to 50 %   to 90 %   reached   queries   CPU s   peak MB")
    surrogates: Sequence[nn.Module] = ()
    if any(SEARCHES[name][2] for name in missing):
        made = finish(
            make_surrogates(
                original,
                craft_sample,
                generator=torch.Generator().manual_seed(seed),
                cache_dir=options.surrogate_cache,
            )
        )
        surrogates = [surrogate.classifier for surrogate in made]
    for name in missing:
        schedule, feedback, warm = SEARCHES[name]
        config = QueryConfig(
            eps=eps,
            schedule=schedule,
            feedback=feedback,
            max_queries=options.max_queries,
            autocast="bf16" if options.bf16 else None,
        )
        started = time.process_time()
        found = search(model, craft, config, surrogates if warm else (), seed)
        elapsed = time.process_time() - started
        curve = [
            (point.n_queries, asr(model.classifier, held_out, point.delta))
            for point in found.milestones
        ]
        half, most = (queries_to(share * white, curve) for share in (0.5, 0.9))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        kept.add(
            {
                **about,
                "search": name,
                "max_queries": options.max_queries,
                "white": white,
                "alone": alone,
                "curve": curve,
                "cpu_s": elapsed,
                "peak_mb": peak_mb,
            }
        )
        print(
            f"    {name:18s} {half:>8s}  {most:>8s}  {curve[-1][1]:8.3f}  {found.n_queries:8d}  "
            f"{elapsed:6.0f}  {peak_mb:8.0f}",
            flush=True,
        )
        if options.curves:
            print("       ", "  ".join(f"{n}:{rate:.3f}" for n, rate in curve), flush=True)


class Kept:
    """Searches that were run, in a JSON file where one was named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        there = path is not None and path.exists()
        self.searches: list[dict[str, Any]] = json.loads(path.read_text()) if there else []

    def find(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """Return one that agrees with `about`."""
        return next((s for s in self.searches if about.items() <= without_curve(s).items()), None)

    def has(self, about: dict[str, Any]) -> bool:
        """Say whether there is one."""
        return self.find(about) is not None

    def add(self, search: dict[str, Any]) -> None:
        """Keep one."""
        self.searches.append(search)
        if self.path is not None:
            lines = ",\n".join(json.dumps(one) for one in self.searches)
            self.path.write_text(f"[\n{lines}\n]\n")


def without_curve(search: dict[str, Any]) -> dict[str, Any]:
    """Leave out what cannot be compared at once."""
    return {name: value for name, value in search.items() if name != "curve"}


def whitebox_delta(
    model: LoadedModel, craft: Poisoned, eps: float, seed: int, options: argparse.Namespace
) -> Tensor:
    """Return the yardstick's perturbation."""
    return finish(
        reactivate_whitebox(
            model.classifier,
            craft.triggered,
            craft.targets,
            config=WhiteboxConfig(eps=eps, autocast="bf16" if options.bf16 else None),
            generator=torch.Generator().manual_seed(seed),
        )
    ).delta


def search(
    model: LoadedModel,
    craft: Poisoned,
    config: QueryConfig,
    surrogates: Sequence[nn.Module],
    seed: int,
) -> QueryResult:
    """Search by asking alone."""

    def ask(images: Tensor) -> Tensor:
        scores = predict_logits(model.classifier, images, batch_size=256)
        return scores if config.feedback == "scores" else scores.argmax(dim=1)

    return finish(
        reactivate_query(
            ask,
            craft.triggered,
            craft.targets,
            config=config,
            generator=torch.Generator().manual_seed(seed),
            surrogates=surrogates,
        )
    )


def asr(classifier: nn.Module, held_out: Poisoned, delta: Tensor) -> float:
    """Return the share of held-out triggered images + delta at their targets."""
    predicted = predict(classifier, held_out.triggered, batch_size=256, delta=delta)
    return statistics.fmean((predicted == held_out.targets).tolist())


def queries_to(level: float, curve: Sequence[tuple[int, float]]) -> str:
    """Return the first number of queries from which on the curve is at `level` or above."""
    reached = None
    for n_queries, rate in curve:
        if rate < level:
            reached = None
        elif reached is None:
            reached = n_queries
    return "-" if reached is None else str(reached)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Queries to reach what the white box reaches.")
    parser.add_argument("model", nargs="?", type=Path, default=DEMO / "dormant.safetensors")
    parser.add_argument("--original", type=Path, default=DEMO / "original.safetensors")
    parser.add_argument("--data", type=Path, default=DEMO / "clean.npz")
    parser.add_argument("--trigger", type=Path, default=DEMO / "trigger.toml")
    parser.add_argument("--arch", help="architecture, where the files do not say")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.02, 0.03])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-queries", type=int, default=20_000)
    parser.add_argument("--n-craft", type=int, default=500)
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--surrogate-cache", type=Path, help="folder to keep surrogates in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curves", action="store_true", help="print whole curves as well")
    parser.add_argument("--bf16", action="store_true", help="run all models in bfloat16")
    parser.add_argument("--json", type=Path, help="file to keep every search in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
