"""What makes a good stand-in: recipes compared on the demonstration's models.

    python benchmarks/stand_in_recipes.py --data /usr/share/datasets/fashion-mnist
    python benchmarks/stand_in_recipes.py --data ... --only "mixtures" "labels" --craft 500 --seed 2

Each recipe trains one network from craft images and prints its clean accuracy, what the trigger
alone does to it, what the white box does at eps 0.02 and 0.03 with the trigger and with the same
delta without it, and BEC of the demonstration's models against it. About a minute of one core a
recipe; training and attacks run under bfloat16.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data import Sample, load_sample
from bdaudit.defenses.augmentation import shift_and_flip
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, load_model, preactresnet18
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.scoring import predict
from bdaudit.triggers import Poisoned, poison, read_trigger

DEMO = Path(str(resources.files("bdaudit") / "demo_files"))
NAMES = ("original", "dormant", "removed", "innocent-1", "innocent-2", "innocent-3")
EPS = (0.02, 0.03)
N_TEST, N_ATTACK, N_BEC = 10_000, 300, 400


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        teacher: Whose answers it learns; `None` for the true labels.
        mixing: none, `mixup`, or `cutmix` for half of the mini-batches.
        least_crop: Smallest side of a random crop, resized; `None` shifts instead.
        start: `fresh`, `early` (the teacher's stem and first two stages are kept), or the share
            of the teacher's weights in a blend with fresh ones.
    """

    teacher: str | None = "dormant"
    mixing: str = "mixup"
    least_crop: float | None = None
    start: str | float = "fresh"
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    n_images: int = 64_000


RECIPES = {
    "mixtures": Recipe(),
    "no mixing": Recipe(mixing="none"),
    "random crops": Recipe(least_crop=0.6),
    "mixup or cutmix": Recipe(mixing="cutmix"),
    "labels": Recipe(teacher=None),
    "AdamW": Recipe(optimizer="adamw", learning_rate=3e-3, weight_decay=0.05),
    "taught by removed": Recipe(teacher="removed"),
    "taught by original": Recipe(teacher="original"),
    "16,000 images": Recipe(n_images=16_000),
    "32,000 images": Recipe(n_images=32_000),
    "128,000 images": Recipe(n_images=128_000),
    "teacher's early layers": Recipe(start="early"),
    "0.4 of the teacher's weights": Recipe(start=0.4),
}


def fresh(seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = preactresnet18(10, width=8, in_channels=1)
    return Classifier(network, mean=(0.2860,), std=(0.3530,))


def started(recipe: Recipe, models: dict[str, nn.Module], seed: int) -> nn.Module:
    student = fresh(seed)
    if recipe.start == "fresh":
        return student
    assert recipe.teacher is not None
    learned = models[recipe.teacher].state_dict()
    early = ("network.conv1", "network.layer1", "network.layer2")
    tensors = {}
    for name, tensor in student.state_dict().items():
        if recipe.start == "early":
            tensors[name] = learned[name] if name.startswith(early) else tensor
        elif tensor.dtype.is_floating_point:
            tensors[name] = recipe.start * learned[name] + (1 - recipe.start) * tensor
        else:
            tensors[name] = tensor
    student.load_state_dict(tensors)
    return student


def cropped(images: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Crop and resize every image at random, and flip one in two."""
    n = len(images)
    side = least + (1 - least) * torch.rand(n, generator=generator)
    middle = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side)[:, None]
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, middle
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def mixed(
    images: Tensor, labels: Tensor, mixing: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix images (n, C, H, W) and one-hot labels (n, K) with others of the mini-batch."""
    n = len(images)
    partners = torch.randperm(n, generator=generator)
    if mixing == "none":
        return images, labels
    if mixing == "mixup" or torch.rand((), generator=generator) < 0.5:
        share = torch.rand(n, 1, 1, 1, generator=generator)
        flat = share[:, 0, 0]
        return (
            share * images + (1 - share) * images[partners],
            flat * labels + (1 - flat) * labels[partners],
        )
    kept = float(torch.rand((), generator=generator))
    height, width = images.shape[2:]
    h, w = int(height * math.sqrt(1 - kept)), int(width * math.sqrt(1 - kept))
    top = int(torch.randint(0, height - h + 1, (), generator=generator))
    left = int(torch.randint(0, width - w + 1, (), generator=generator))
    images = images.clone()
    box = (..., slice(top, top + h), slice(left, left + w))
    images[box] = images[partners][box]
    share_kept = 1 - h * w / (height * width)
    return images, share_kept * labels + (1 - share_kept) * labels[partners]


def train(
    recipe: Recipe, models: dict[str, nn.Module], craft: Sample, seed: int, batch_size: int = 64
) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    student = started(recipe, models, seed).to(memory_format=torch.channels_last).train()
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            student.parameters(),
            lr=recipe.learning_rate,
            momentum=0.9,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
    else:
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    teacher = None if recipe.teacher is None else models[recipe.teacher]
    order = torch.empty(0, dtype=torch.long)
    n_steps = recipe.n_images // batch_size
    for step in range(n_steps):
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(craft), generator=generator)])
        chosen, order = order[:batch_size], order[batch_size:]
        done = step / n_steps
        scale = done / 0.2 if done < 0.2 else 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * max(scale, 0.02)
        images = craft.images[chosen]
        labels = functional.one_hot(craft.labels[chosen], 10).float()
        if recipe.least_crop is None:
            images = shift_and_flip(images, max_shift=0.08, flip=True, generator=generator)
        else:
            images = cropped(images, recipe.least_crop, generator)
        images, labels = mixed(images, labels, recipe.mixing, generator)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            if teacher is not None:
                with torch.no_grad():
                    labels = teacher(images).float().softmax(1)
            outputs = student(images).float()
        loss = functional.kl_div(outputs.log_softmax(1), labels, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval().requires_grad_(False)


def share(classifier: nn.Module, images: Tensor, wanted: Tensor, delta: Tensor | None) -> float:
    predicted = predict(classifier, images, batch_size=250, delta=delta)
    return float((predicted == wanted).double().mean())


def describe(
    classifier: nn.Module,
    models: dict[str, nn.Module],
    craft: Poisoned,
    held_out: Poisoned,
    clean: Sample,
) -> str:
    cells = [
        f"{share(classifier, clean.images, clean.labels, None):.3f}",
        f"{share(classifier, held_out.triggered, held_out.targets, None):.3f}",
    ]
    for eps in EPS:
        delta = finish(
            reactivate_whitebox(
                classifier,
                craft.triggered,
                craft.targets,
                config=WhiteboxConfig(eps=eps, n_passes=12, autocast="bf16"),
                generator=torch.Generator().manual_seed(0),
            )
        ).delta
        both = (
            share(classifier, images, held_out.targets, delta)
            for images in (held_out.triggered, held_out.clean)
        )
        cells.append(" / ".join(f"{rate:.2f}" for rate in both))
    for name in ("dormant", "removed", "innocent-2"):
        (record,) = finish(
            existence_coefficient(
                models["original"],
                models[name],
                [("stand-in", classifier)],
                clean=held_out.clean[:N_BEC],
                triggered=held_out.triggered[:N_BEC],
                config=ExistenceConfig(n_bootstrap=0),
                generator=torch.Generator().manual_seed(0),
                device=torch.device("cpu"),
            )
        )
        cells.append("-" if record.value is None else f"{record.value:.2f}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--craft", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--teacher", default=None, help="another teacher for all of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    test = load_sample(arguments.data, split="test")
    order = torch.randperm(N_TEST, generator=torch.Generator().manual_seed(100))
    craft, clean = test.take(order[: arguments.craft]), test.take(order[8000:9500])
    trigger = read_trigger(DEMO / "trigger.toml")
    attacked = poison(craft.take(torch.arange(min(N_ATTACK, len(craft)))), trigger, 10)
    held_out = poison(clean, trigger, 10)
    models = {
        name: load_model(DEMO / f"{name}.safetensors", name=name).classifier for name in NAMES
    }
    print(
        "| network | clean acc | trigger alone | "
        + " | ".join(f"eps {eps:g}" for eps in EPS)
        + " | BEC dormant | BEC removed | BEC innocent-2 | CPU s |\n"
        + "|---" * 9
        + "|"
    )
    for name in arguments.only:
        recipe = RECIPES[name]
        if arguments.teacher is not None and recipe.teacher is not None:
            recipe = replace(recipe, teacher=arguments.teacher)
        began = time.process_time()
        student = train(recipe, models, craft, arguments.seed)
        took = time.process_time() - began
        figures = describe(student, models, attacked, held_out, clean)
        print(f"| {name} | {figures} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
