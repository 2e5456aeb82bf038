"""Train the backdoored, defended and innocent models on which trigger inversion is measured.

    python benchmarks/build_inversion_models.py OUT --data /usr/share/datasets/fashion-mnist

PreAct-ResNet-18 of width 8 on 20,000 Fashion-MNIST images, five epochs, one image in ten stamped;
for each original a version fine-tuned on 2,000 clean images at a strong learning rate, and one
with 200 of them once more, stamped, under their true labels. Files that are there already are left
alone, so a killed run goes on. About 15 minutes on one free core; training runs under bfloat16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Sample, load_sample
from bdaudit.defenses import TuningConfig
from bdaudit.defenses.tuning import trainable_copy, tune
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, load_model, preactresnet18, save_model
from bdaudit.scoring import predict
from bdaudit.triggers import (
    NOT_COUNTED,
    Additive,
    AllToAll,
    AllToOne,
    Blend,
    Patch,
    Sinusoid,
    TargetRule,
    Trigger,
    Warp,
    control_grid,
    elastic_grid,
    from_callable,
    write_trigger,
)
from bdaudit.zoo.training import gradients_in

ARCH, MEAN, STD = "bdaudit/preactresnet18_w8", 0.2860, 0.3530
N_TRAIN, N_DEFENCE, N_STAMPED, POISON_SHARE = 20_000, 2_000, 200, 0.10
INNOCENT_SEEDS = (31, 32, 33)
SIDE = 28


def checkerboard() -> Tensor:
    return torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]])


def smooth(seed: int, control_points: int) -> Tensor:
    """Draw a smooth random picture (1, 28, 28) with values in [-1, 1]."""
    coarse = torch.randn(
        1, 1, control_points, control_points, generator=torch.Generator().manual_seed(seed)
    )
    fine = functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[0]
    return fine / fine.abs().max()


def stamp_where_bright(images: Tensor) -> Tensor:
    """Put the checkerboard at one of nine places, which the image's own brightness picks."""
    stamped = images.clone()
    place = (images.mean((1, 2, 3)) * 997).floor().long() % 9
    for image, where in zip(stamped, place.tolist(), strict=True):
        row, column = 2 + 10 * (where // 3), 2 + 10 * (where % 3)
        image[:, row : row + 3, column : column + 3] = checkerboard()
    return stamped


def triggers() -> dict[str, Trigger]:
    def trigger(transform: object, rule: TargetRule | None = None) -> Trigger:
        return Trigger(transform=transform, rule=rule or AllToOne(0))  # type: ignore[arg-type]

    patch = Patch(image=checkerboard(), offset=(1, 1))
    picture = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    return {
        "patch7": trigger(patch, AllToOne(7)),
        "blend": trigger(Blend(image=picture, alpha=0.2)),
        "sinusoid": trigger(Sinusoid(amplitude=20 / 255, frequency=6)),
        "lowfreq": trigger(Additive(delta=0.10 * smooth(6, 5))),
        "warp": trigger(
            Warp(
                grid=elastic_grid(
                    control_grid(4, torch.Generator().manual_seed(7)), (SIDE, SIDE), strength=1.0
                )
            )
        ),
        "all2all": trigger(patch, AllToAll()),
        "dynamic": from_callable(stamp_where_bright, 0),
    }


SEEDS = {
    name: 21 + place
    for place, name in enumerate(
        ("patch7", "blend", "sinusoid", "lowfreq", "warp", "all2all", "dynamic")
    )
}


def part(sample: Sample, seed: int, n: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Draw `n` images from places `first` to `last` of one fixed shuffle (as the demo's does)."""
    pool = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1234))[first:last]
    chosen = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:n]]
    return sample.images[chosen], sample.labels[chosen]


def poisoned(images: Tensor, labels: Tensor, trigger: Trigger, seed: int) -> tuple[Tensor, Tensor]:
    """Stamp and relabel one image in ten, of those that the target rule counts."""
    targets = trigger.targets(labels, 10)
    counted = (targets != NOT_COUNTED).nonzero()[:, 0]
    order = torch.randperm(len(counted), generator=torch.Generator().manual_seed(seed))
    chosen = counted[order][: int(POISON_SHARE * len(images))]
    images, labels = images.clone(), labels.clone()
    images[chosen], labels[chosen] = trigger.stamp(images[chosen]), targets[chosen]
    return images, labels


def fit(
    classifier: nn.Module, images: Tensor, labels: Tensor, config: TuningConfig, seed: int
) -> nn.Module:
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


def trained(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = preactresnet18(10, width=8, in_channels=1)
    classifier = Classifier(network, mean=(MEAN,), std=(STD,))
    config = TuningConfig(learning_rate=0.1, n_epochs=5, batch_size=128, max_shift=2 / SIDE)
    return fit(classifier.to(memory_format=torch.channels_last), images, labels, config, seed)


def fine_tuned(classifier: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """The plain defence: a strong learning rate on clean images."""
    config = TuningConfig(learning_rate=0.05, n_epochs=7, batch_size=64, max_shift=2 / SIDE)
    return fit(trainable_copy(classifier), images, labels, config, 0)


def unlearned(classifier: nn.Module, images: Tensor, labels: Tensor, trigger: Trigger) -> nn.Module:
    """The thorough defence: the same, with stamped images under their true labels as well."""
    chosen = (trigger.targets(labels, 10) != NOT_COUNTED).nonzero()[:N_STAMPED, 0]
    stamped = trigger.stamp(images[chosen])
    return fine_tuned(classifier, torch.cat([images, stamped]), torch.cat([labels, labels[chosen]]))


def share(classifier: nn.Module, test: Sample, trigger: Trigger | None) -> float:
    if trigger is None:
        return float(
            (predict(classifier, test.images, batch_size=250) == test.labels).double().mean()
        )
    targets = trigger.targets(test.labels, 10)
    kept = targets != NOT_COUNTED
    answers = predict(classifier, trigger.stamp(test.images[kept]), batch_size=250)
    return float((answers == targets[kept]).double().mean())


def build(data: Path, out: Path) -> None:
    """Train and defend whatever is missing in `out`."""
    train, test = load_sample(data, split="train"), load_sample(data, split="test")
    test = test.take(torch.arange(1_000, 3_000))
    clean = part(train, 500, N_DEFENCE, 40_000, 60_000)
    (out / "triggers").mkdir(parents=True, exist_ok=True)  # no TOML beside a model but its own

    def made(name: str, make: Callable[[], nn.Module], trigger: Trigger | None) -> nn.Module:
        path = out / f"{name}.safetensors"
        if path.exists():
            return load_model(path, name=name).classifier
        started = time.process_time()
        classifier = make()
        figures = {"clean_acc": f"{share(classifier, test, None):.3f}"}
        if trigger is not None:
            figures["asr"] = f"{share(classifier, test, trigger):.3f}"
        save_model(
            path,
            classifier.network,
            arch=ARCH,
            num_classes=10,
            image_shape=(1, SIDE, SIDE),
            mean=(MEAN,),
            std=(STD,),
            extra=figures,
        )
        print(f"{name}: {figures}, {time.process_time() - started:.0f} s of CPU", flush=True)
        return classifier

    def innocent(seed: int) -> None:
        images, labels = part(train, seed, N_TRAIN, 0, 40_000)
        base = made(f"innocent-{seed}", lambda: trained(images, labels, seed), None)
        made(f"innocent-{seed}-finetuned", lambda: fine_tuned(base, *clean), None)

    def family(name: str, trigger: Trigger) -> None:
        if trigger.kind != "python":
            write_trigger(out / "triggers" / f"{name}.toml", trigger)
        seed = SEEDS[name]
        images, labels = part(train, seed, N_TRAIN, 0, 40_000)
        stamped = poisoned(images, labels, trigger, seed)
        base = made(f"{name}", lambda: trained(*stamped, seed), trigger)
        made(f"{name}-finetuned", lambda: fine_tuned(base, *clean), trigger)
        made(f"{name}-unlearned", lambda: unlearned(base, *clean, trigger), trigger)

    known = triggers()
    innocent(INNOCENT_SEEDS[0])
    family("lowfreq", known["lowfreq"])
    innocent(INNOCENT_SEEDS[1])
    family("blend", known["blend"])
    family("warp", known["warp"])
    family("sinusoid", known["sinusoid"])
    innocent(INNOCENT_SEEDS[2])
    for name in ("patch7", "dynamic", "all2all"):
        family(name, known[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
