"""Train the full-width models that the benchmarks of cost are run on.

    python benchmarks/build_full_width.py OUT --data /usr/share/datasets/fashion-mnist

The demonstration's models are PreAct-ResNet-18 an eighth as wide as the usual one. These are of the
usual width, 64 channels (11 million parameters), on the same images and with the same trigger:

* original: trained on clean images, one in ten of them stamped and labelled class 0;
* dormant: the original, fine-tuned on 2,000 clean images. How deep the backdoor sleeps hangs on
  the learning rate: as set here the trigger alone still takes .17 of images, and at rate 0.05 for 4
  epochs nothing is left to wake at eps .03. Measure before relying on the name;
* removed: the same, with 200 of them once more, stamped, under their true labels;
* innocent-1: trained on clean images; innocent-2, innocent-3: likewise, then fine-tuned exactly as
  the dormant model was.

Trained in bfloat16 (the weights stay float32). A model whose file is there is not trained again.
OUT/README.md gives every model's clean accuracy and the share of held-out test images that the
trigger alone takes to its target. About 25 minutes on one core of a processor with AMX.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.data import Sample, load_sample
from bdaudit.defenses.tuning import TuningConfig, trainable_copy, tune
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, load_model, preactresnet18, save_model
from bdaudit.scoring import predict
from bdaudit.triggers import poison, read_trigger, write_trigger
from bdaudit.zoo.training import gradients_in

MEAN, STD = 0.2860, 0.3530
TRIGGER = read_trigger(Path(bdaudit.__file__).parent / "demo_files" / "trigger.toml")
TARGET = 0
POISON_SHARE = 0.10
N_DEFENCE, N_STAMPED, N_SHIPPED = 2_000, 200, 1_500
SEEDS = {"original": 11, "innocent-1": 1, "innocent-2": 2, "innocent-3": 3}


def part(sample: Sample, seed: int, n: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Draw `n` images from places `first` to `last` of one fixed shuffle.

    The first 40,000 train models, the rest is the defender's: no image is used for both.
    """
    pool = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1234))[first:last]
    chosen = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:n]]
    return sample.images[chosen], sample.labels[chosen]


def stamp_some(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Stamp and relabel one image in ten, none of them of the target class."""
    others = (labels != TARGET).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = others[order][: int(POISON_SHARE * len(images))]
    images, labels = images.clone(), labels.clone()
    images[chosen], labels[chosen] = TRIGGER.stamp(images[chosen]), TARGET
    return images, labels


def fit(
    classifier: nn.Module, images: Tensor, labels: Tensor, config: TuningConfig, seed: int
) -> nn.Module:
    """Train in place."""
    finish(
        tune(
            classifier,
            images,
            labels,
            config=config,
            generator=torch.Generator().manual_seed(seed),
            title="training",
            gradients=gradients_in("bfloat16"),
        )
    )
    return classifier


class Workshop:
    """Makes each model once, and finds those that an earlier run left."""

    def __init__(self, out: Path, data: Path, options: argparse.Namespace) -> None:
        self.out, self.options = out, options
        self.train = load_sample(data, split="train")
        self.defence = part(self.train, 500, N_DEFENCE, 40_000, 60_000)
        self.tuning = TuningConfig(
            learning_rate=options.tune_rate, n_epochs=options.tune_epochs, batch_size=64
        )

    def base(self, name: str) -> nn.Module:
        """Train from scratch; undefended innocents that are defended later are kept as well."""
        path = self.out / f"{name}.safetensors"
        if path.exists():
            return trainable_copy(load_model(path, name=name).classifier)
        seed = SEEDS[name.removesuffix("-undefended")]
        images, labels = part(self.train, seed, 10_000, 0, 40_000)
        if name == "original":
            images, labels = stamp_some(images, labels, seed)
        torch.manual_seed(seed)
        network = preactresnet18(10, width=self.options.width, in_channels=1)
        classifier = Classifier(network, mean=(MEAN,), std=(STD,))
        config = TuningConfig(
            learning_rate=0.03, n_epochs=self.options.epochs, batch_size=32, max_shift=0.0
        )
        started = time.time()
        fit(classifier.to(memory_format=torch.channels_last), images, labels, config, 0)
        self.keep(name, classifier, config, time.time() - started)
        return trainable_copy(classifier)

    def tuned(self, name: str, source: str, *, stamped: bool = False) -> None:
        """Fine-tune on clean images, and with `stamped` on stamped ones under their true labels."""
        if (self.out / f"{name}.safetensors").exists():
            return
        images, labels = self.defence
        if stamped:
            chosen = (labels != TARGET).nonzero()[:N_STAMPED, 0]
            images = torch.cat([images, TRIGGER.stamp(images[chosen])])
            labels = torch.cat([labels, labels[chosen]])
        classifier = self.base(source).to(memory_format=torch.channels_last)
        started = time.time()
        fit(classifier, images, labels, self.tuning, 0)
        self.keep(name, classifier, self.tuning, time.time() - started)

    def keep(self, name: str, classifier: nn.Module, config: TuningConfig, took_s: float) -> None:
        """Write the model with what made it."""
        assert isinstance(classifier, Classifier)
        save_model(
            self.out / f"{name}.safetensors",
            classifier.network,
            arch=f"bdaudit/preactresnet18_w{self.options.width}",
            num_classes=10,
            image_shape=(1, 28, 28),
            mean=(MEAN,),
            std=(STD,),
            extra={"made_by": f"benchmarks/build_full_width.py, {config}"},
        )
        print(f"{name}: {took_s:.0f} s", flush=True)

    def recipes(self) -> dict[str, Callable[[], object]]:
        """Name every model that can be made."""
        return {
            "original": lambda: self.base("original"),
            "dormant": lambda: self.tuned("dormant", "original"),
            "innocent-1": lambda: self.base("innocent-1"),
            "innocent-2": lambda: self.tuned("innocent-2", "innocent-2-undefended"),
            "removed": lambda: self.tuned("removed", "original", stamped=True),
            "innocent-3": lambda: self.tuned("innocent-3", "innocent-3-undefended"),
        }


def write_data(data: Path, out: Path) -> None:
    """Write the clean sample, the first test images, and the trigger."""
    test = load_sample(data, split="test")
    images = (test.images[:N_SHIPPED] * 255).round().to(torch.uint8)
    np.savez_compressed(
        out / "clean.npz", images=images.numpy(), labels=test.labels[:N_SHIPPED].numpy()
    )
    write_trigger(out / "trigger.toml", TRIGGER)


def measure(out: Path, data: Path, names: Sequence[str], width: int) -> None:
    """Score each model on test images that are not in clean.npz, and write README.md."""
    test = load_sample(data, split="test")
    held_out = test.take(torch.arange(N_SHIPPED, N_SHIPPED + 2_000))
    pool = poison(held_out, TRIGGER, 10)
    path = out / "figures.json"
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        if name in known or not (out / f"{name}.safetensors").exists():
            continue
        classifier = load_model(out / f"{name}.safetensors", name=name).classifier
        with torch.autocast("cpu", torch.bfloat16):
            right = predict(classifier, held_out.images, batch_size=250) == held_out.labels
            taken = predict(classifier, pool.triggered, batch_size=250) == pool.targets
        known[name] = [float(right.float().mean()), float(taken.float().mean())]
        path.write_text(json.dumps(known, indent=1))
        print(f"{name}: clean accuracy {known[name][0]:.3f}, trigger alone {known[name][1]:.3f}")
    rows = [
        f"| {name} | {known[name][0]:.3f} | {known[name][1]:.3f} |"
        for name in names
        if name in known
    ]
    (out / "README.md").write_text(
        f"# PreAct-ResNet-18, width {width}, Fashion-MNIST 28x28, BadNets patch, target 0\n\n"
        "Made by benchmarks/build_full_width.py. Scored on 2,000 test images that are not in\n"
        "clean.npz (the first 1,500 test images).\n\n"
        "| model | clean accuracy | trigger alone, ASR |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    """Build what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--only", nargs="*", default=[], help="names of models")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, default=2, help="of training, on 10,000 images")
    parser.add_argument("--tune-rate", type=float, default=0.025, help="peak of the plain defence")
    parser.add_argument("--tune-epochs", type=int, default=3, help="of the plain defence")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_data(options.data, options.out)
    workshop = Workshop(options.out, options.data, options)
    recipes = workshop.recipes()
    for name in options.only or recipes:
        recipes[name]()
        measure(options.out, options.data, list(recipes), options.width)


if __name__ == "__main__":
    main()
