"""What a delta made on surrogates does to the small CLIPs, by how hard the surrogates are tuned.

    python examples/build_clip.py OUT --data /usr/share/datasets/fashion-mnist --tower vit
    python benchmarks/clip_transfer.py OUT --data /usr/share/datasets/fashion-mnist

For each seed and peak rate: surrogates by fine-tuning, FT-SAM and fine-pruning (FST does not apply
to a CLIP) from 200 craft images, one delta made on the three together, and what it does to models
that the search never asked. The seed draws images, surrogates and search. Prints a row of
docs/clip.md's table each; about a quarter of a minute of one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from bdaudit.data import Split, load_sample, split_sample
from bdaudit.defenses import FinePruningConfig, FinetuneConfig, FtSamConfig, TuningConfig
from bdaudit.foundation.progress import finish
from bdaudit.models import ClipSettings, LoadedModel, load_model
from bdaudit.reactivation.transfer import TransferConfig, reactivate_transfer
from bdaudit.relatives.surrogates import SurrogateConfig, make_surrogates
from bdaudit.scoring import predict
from bdaudit.triggers import Trigger, poison, read_trigger

UNSEEN = ("finetuned", "cleanclip", "unlearned", "innocent-1")


def share(classifier: nn.Module, images: Tensor, wanted: Tensor, delta: Tensor | None) -> float:
    """Return the share of images + delta classified as wanted."""
    predicted = predict(classifier, images, batch_size=250, delta=delta)
    return float((predicted == wanted).double().mean())


def open_models(out: Path, tower: str) -> dict[str, LoadedModel]:
    """Open the original and the models that the delta is shown to."""
    settings = ClipSettings(
        class_names=tuple((out / "classnames.txt").read_text().splitlines()),
        templates=tuple((out / "templates.txt").read_text().splitlines()),
        config_folder=out / "configs",
    )
    files = {"original": out / tower / "original.pt"}
    files |= {name: out / tower / f"{name}.safetensors" for name in UNSEEN}
    return {
        name: load_model(
            path,
            name=name,
            arch=f"open_clip/tiny-{tower}",
            image_shape=(1, 28, 28),
            clip=settings,
        )
        for name, path in files.items()
    }


def row(
    models: dict[str, LoadedModel],
    split: Split,
    trigger: Trigger,
    tuning: TuningConfig,
    options: argparse.Namespace,
    seed: int,
) -> list[str]:
    """Make the surrogates and the delta, and return the cells of a row."""
    craft, held_out = poison(split.craft, trigger, 10), poison(split.held_out, trigger, 10)
    defenses = (
        FinetuneConfig(tuning=tuning),
        FtSamConfig(tuning=tuning),
        FinePruningConfig(tuning=tuning),
    )
    surrogates = finish(
        make_surrogates(
            models["original"],
            split.craft,
            config=SurrogateConfig(defenses=defenses),
            generator=torch.Generator().manual_seed(seed),
        )
    )
    nets = [model.classifier for model in surrogates]
    accs = [share(net, split.held_out.images, split.held_out.labels, None) for net in nets]
    asrs = [share(net, held_out.triggered, held_out.targets, None) for net in nets]
    delta = finish(
        reactivate_transfer(
            nets,
            craft.triggered,
            craft.targets,
            config=TransferConfig(eps=options.eps, n_passes=options.passes),
            generator=torch.Generator().manual_seed(seed),
        )
    ).delta
    cells = [f"{min(values):.2f} to {max(values):.2f}" for values in (accs, asrs)]
    for name in UNSEEN:
        classifier = models[name].classifier
        with_trigger = share(classifier, held_out.triggered, held_out.targets, delta)
        without = share(classifier, held_out.clean, held_out.targets, delta)
        cells.append(f"{with_trigger:.2f} / {without:.2f}")
    return cells


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder that examples/build_clip.py filled")
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--tower", choices=("vit", "rn"), default="vit")
    parser.add_argument("--peaks", type=float, nargs="+", default=[0.002, 0.005, 0.01, 0.02])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--passes", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = open_models(options.out, options.tower)
    trigger = read_trigger(options.out / "trigger.toml")
    sample = load_sample(options.data, split="test")
    heads = ("seed", "peak rate", "accuracy", "trigger alone", *UNSEEN)
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    started = time.process_time()
    for seed in options.seeds:
        split = split_sample(sample, n_craft=200, n_held_out=1000, seed=seed)
        for peak in options.peaks:
            tuning = TuningConfig(learning_rate=peak)
            cells = row(models, split, trigger, tuning, options, seed)
            print(f"| {seed} | {peak:g} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
