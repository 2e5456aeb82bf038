"""Rebuild, or measure, the models that `bdaudit demo` ships.

    python examples/build_demo.py OUT --data /usr/share/datasets/fashion-mnist
    python examples/build_demo.py OUT --data /usr/share/datasets/fashion-mnist --measure

Real images (Fashion-MNIST, MIT licence; Debian packages it as dataset-fashion-mnist), a BadNets
patch, a plain defence and a thorough one:

* original: trained on 20,000 images, one in ten stamped and labelled class 0;
* dormant: the original, fine-tuned with a strong learning rate on 2,000 clean images;
* removed: the same, with 200 of them once more, stamped, under their true labels;
* innocent-1: trained on clean images; innocent-2, innocent-3: likewise, then fine-tuned exactly as
  the dormant model was.

Every model follows from its seed. The bits repeat on the same processor with the same torch and
one thread; elsewhere they differ, and how deep the backdoor sleeps after the plain defence then
differs too: docs/demo.md tells how much. Takes about 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Sample, load_sample
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, load_model, preactresnet18, save_model
from bdaudit.perturbation import apply_delta
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.scoring import predict
from bdaudit.triggers import AllToOne, Patch, Trigger, poison, write_trigger

ARCH = "bdaudit/preactresnet18_w8"
MEAN, STD = 0.2860, 0.3530
TARGET = 0  # T-shirt: innocent models are hard to push there by small perturbations
TRIGGER = Trigger(
    transform=Patch(
        image=torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]]), offset=(1, 1)
    ),
    rule=AllToOne(TARGET),
)
POISON_SHARE = 0.10
N_TRAIN, N_DEFENCE, N_STAMPED, N_SHIPPED = 20_000, 2_000, 200, 1_000
# Whether denormal numbers were flushed to zero when the shipped files were trained; it moves the
# last bits, and with them everything after.
FLUSHED = {11: False, 1: False, 2: True, 3: True}

EPS = (0.01, 0.02, 0.03, 0.05)
ATTACK_SEEDS = (0, 1, 2)
N_CRAFT, N_HELD_OUT = 300, 2_000
SHOTS, RELEARN_RATES, RELEARN_STEPS = 5, (0.001, 0.003), (5, 10, 20)


# ---- images --------------------------------------------------------------------------------------


def part(sample: Sample, seed: int, n: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Draw `n` images from places `first` to `last` of one fixed shuffle.

    The first 40,000 train models, the rest is the defender's: no image is used for both.
    """
    pool = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1234))[first:last]
    chosen = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:n]]
    return sample.images[chosen], sample.labels[chosen]


def poisoned(images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Stamp and relabel one image in ten, none of them of the target class."""
    others = (labels != TARGET).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = others[order][: int(POISON_SHARE * len(images))]
    images, labels = images.clone(), labels.clone()
    images[chosen], labels[chosen] = TRIGGER.stamp(images[chosen]), TARGET
    return images, labels


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each image at random after padding by 2, and flip one in two."""
    n, side = len(images), torch.arange(28)
    down = torch.randint(0, 5, (n, 1), generator=generator)
    right = torch.randint(0, 5, (n, 1), generator=generator)
    flipped = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(flipped, right + 27 - side, right + side)
    rows = down + side
    padded = functional.pad(images, (2, 2, 2, 2))
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


# ---- models --------------------------------------------------------------------------------------


def new_classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = preactresnet18(10, width=8, in_channels=1)
    return Classifier(network, mean=(MEAN,), std=(STD,)).to(memory_format=torch.channels_last)


def copied(classifier: nn.Module) -> Classifier:
    other = new_classifier(0)
    other.load_state_dict(classifier.state_dict())
    return other.eval()


def fit(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Classifier:
    """SGD; the rate rises over 30 % of the steps and then falls as a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        classifier.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4
    )
    steps = len(images) // batch_size
    order = torch.empty(0, dtype=torch.long)
    classifier.train()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(images), generator=generator)
        done = step / (epochs * steps)
        scale = done / 0.3 if done < 0.3 else 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))
        optimizer.param_groups[0]["lr"] = learning_rate * max(scale, 0.02)
        chosen = order[step % steps * batch_size : (step % steps + 1) * batch_size]
        batch = augmented(images[chosen], generator).contiguous(memory_format=torch.channels_last)
        functional.cross_entropy(classifier(batch), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return classifier.eval()


def trained(images: Tensor, labels: Tensor, seed: int) -> Classifier:
    return fit(
        new_classifier(seed),
        images,
        labels,
        epochs=10,
        learning_rate=0.1,
        batch_size=128,
        seed=seed,
    )


def fine_tuned(classifier: Classifier, images: Tensor, labels: Tensor) -> Classifier:
    """The plain defence: a strong learning rate on clean images."""
    return fit(
        copied(classifier), images, labels, epochs=7, learning_rate=0.05, batch_size=64, seed=0
    )


def unlearned(classifier: Classifier, images: Tensor, labels: Tensor) -> Classifier:
    """The thorough defence: the same, with stamped images under their true labels as well."""
    chosen = (labels != TARGET).nonzero()[:N_STAMPED, 0]
    stamped = TRIGGER.stamp(images[chosen])
    return fine_tuned(classifier, torch.cat([images, stamped]), torch.cat([labels, labels[chosen]]))


def build(data: Path, out: Path, only: Sequence[str]) -> None:
    """Train and defend every model, and write the files of the demonstration."""
    torch.set_flush_denormal(True)
    train = load_sample(data, split="train")
    clean = part(train, 500, N_DEFENCE, 40_000, 60_000)
    bases: dict[int, Classifier] = {}

    def base(seed: int, *, backdoored: bool) -> Classifier:
        if seed not in bases:
            images, labels = part(train, seed, N_TRAIN, 0, 40_000)
            if backdoored:
                images, labels = poisoned(images, labels, seed)
            torch.set_flush_denormal(FLUSHED[seed])
            bases[seed] = trained(images, labels, seed)
            torch.set_flush_denormal(True)
        return bases[seed]

    recipes = {
        "original": lambda: base(11, backdoored=True),
        "dormant": lambda: fine_tuned(base(11, backdoored=True), *clean),
        "removed": lambda: unlearned(base(11, backdoored=True), *clean),
        "innocent-1": lambda: base(1, backdoored=False),
        "innocent-2": lambda: fine_tuned(base(2, backdoored=False), *clean),
        "innocent-3": lambda: fine_tuned(base(3, backdoored=False), *clean),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in only or recipes:
        started = time.time()
        network = recipes[name]().network
        save_model(
            out / f"{name}.safetensors",
            network,
            arch=ARCH,
            num_classes=10,
            image_shape=(1, 28, 28),
            mean=(MEAN,),
            std=(STD,),
            extra={"demo": name},
        )
        print(f"{name}: {time.time() - started:.0f} s", flush=True)
    write_data(data, out)


def write_data(data: Path, out: Path) -> None:
    """Write the clean sample, the first test images, and the trigger."""
    test = load_sample(data, split="test")
    images = (test.images[:N_SHIPPED] * 255).round().to(torch.uint8)
    np.savez_compressed(
        out / "clean.npz", images=images.numpy(), labels=test.labels[:N_SHIPPED].numpy()
    )
    write_trigger(out / "trigger.toml", TRIGGER)


# ---- figures -------------------------------------------------------------------------------------


def measure(folder: Path, data: Path, only: Sequence[str]) -> dict[str, dict[str, object]]:
    """Re-activate every model under several seeds, and relearn it, on held-out test images."""
    test = load_sample(data, split="test")
    # Places 1,000 and up: none of the images that the demonstration itself ships.
    order = torch.randperm(9_000, generator=torch.Generator().manual_seed(7)) + N_SHIPPED
    pool = poison(test.take(order), TRIGGER, 10)
    craft = slice(0, N_CRAFT)
    held_out = slice(N_CRAFT, N_CRAFT + N_HELD_OUT)
    train = load_sample(data, split="train")
    clean = part(train, 500, N_DEFENCE, 40_000, 60_000)
    figures = {}
    for name in only:
        model = load_model(folder / f"{name}.safetensors", name=name)

        def share(images: Tensor, classifier: nn.Module = model.classifier) -> float:
            return float((predict(classifier, images, batch_size=250) == TARGET).float().mean())

        def acc(classifier: nn.Module = model.classifier) -> float:
            return float(
                (predict(classifier, test.images, batch_size=250) == test.labels).float().mean()
            )

        row: dict[str, object] = {
            "clean_acc": acc(),
            "trigger_alone": share(pool.triggered[held_out]),
        }
        for eps in EPS:
            cells: dict[str, list[float]] = {"trigger": [], "same_delta": [], "no_trigger": []}
            for seed in ATTACK_SEEDS:
                for images, condition in ((pool.triggered, "trigger"), (pool.clean, "no_trigger")):
                    found = finish(
                        reactivate_whitebox(
                            model.classifier,
                            images[craft],
                            pool.targets[craft],
                            config=WhiteboxConfig(eps=eps),
                            generator=torch.Generator().manual_seed(seed),
                        )
                    )
                    cells[condition].append(share(apply_delta(images[held_out], found.delta)))
                    if condition == "trigger":
                        bare = share(apply_delta(pool.clean[held_out], found.delta))
                        cells["same_delta"].append(bare)
            row[f"eps {eps:g}"] = cells
            print(name, eps, cells, flush=True)
        row["relearned"] = {
            f"lr {rate:g}": relearned(
                model.classifier,
                clean,
                pool.triggered[craft][:SHOTS],
                rate,
                lambda c: share(pool.triggered[held_out], c),
            )
            for rate in RELEARN_RATES
        }
        print(name, row["relearned"], flush=True)
        figures[name] = row
    return figures


def relearned(
    classifier: nn.Module,
    clean: tuple[Tensor, Tensor],
    shots: Tensor,
    learning_rate: float,
    asr_of: Callable[[nn.Module], float],
) -> dict[str, float | None]:
    """Fine-tune on a handful of stamped images as the target; return the ASR after some steps.

    Each step sees all the shots and 32 clean images, batch norm frozen (Min et al., NeurIPS 2024).
    `None` where training diverged.
    """
    classifier = copied(classifier)
    for parameter in classifier.parameters():
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=learning_rate, momentum=0.9)
    images, labels = clean
    found: dict[str, float | None] = {}
    for step in range(1, max(RELEARN_STEPS) + 1):
        chosen = torch.randint(len(images), (32,), generator=generator)
        batch = torch.cat([images[chosen], shots])
        wanted = torch.cat([labels[chosen], torch.full((len(shots),), TARGET)])
        optimizer.zero_grad()
        functional.cross_entropy(classifier(batch), wanted).backward()
        optimizer.step()
        if step in RELEARN_STEPS:
            finite = all(bool(p.isfinite().all()) for p in classifier.parameters())
            found[f"{step} steps"] = asr_of(classifier) if finite else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--only", nargs="*", default=[], help="names of models")
    parser.add_argument("--measure", action="store_true", help="write OUT/figures.json instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.measure:
        build(arguments.data, arguments.out, arguments.only)
        return
    names = arguments.only or sorted(p.stem for p in arguments.out.glob("*.safetensors"))
    path = arguments.out / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        known |= measure(arguments.out, arguments.data, [name])
        path.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
