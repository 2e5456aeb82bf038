"""What building a family will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from bdaudit.defenses.pictures import lessons_of, whole_pictures
from bdaudit.foundation.progress import finish
from bdaudit.zoo.building import Build
from bdaudit.zoo.making import Workshop
from bdaudit.zoo.planning import FUS, Recipe
from bdaudit.zoo.training import gradients_in, new_classifier

__all__ = ["Estimate", "estimate_costs"]


@dataclass(frozen=True)
class Estimate:
    """What making one thing will take.

    Attributes:
        recipe: Of it.
        seconds: Of one worker.
        measured: Whether like things of this folder took as long; otherwise it is reckoned from
            the images that pass through the network.
    """

    recipe: Recipe
    seconds: float
    measured: bool


def estimate_costs(build: Build) -> tuple[Estimate, ...]:
    """Reckon what everything that is missing will take, without relearning.

    A few mini-batches are timed on a fresh network. Defences that do more than tune take longer
    than is reckoned; once one of a kind has been made, its time is taken for the next.
    """
    shop = build.shop
    known: dict[tuple[str, str | None], list[float]] = {}
    for recipe in shop.recipes.values():
        note = shop.folder.note(recipe)
        if note is not None:
            known.setdefault((recipe.method, recipe.type), []).append(note.elapsed_s)
    seconds_an_image = _time_an_image(shop) if build.missing else 0.0
    estimates = []
    for recipe in build.wanted:
        if recipe.name not in build.missing:
            continue
        like = known.get((recipe.method, recipe.type))
        seconds = sum(like) / len(like) if like else seconds_an_image * _passes(recipe, shop)
        estimates.append(Estimate(recipe, seconds, bool(like)))
    return tuple(estimates)


def _passes(recipe: Recipe, shop: Workshop) -> float:
    """Count forward and backward passes, in images."""
    training = shop.training
    in_pool = shop.parts.pool.size
    from_scratch = min(training.images or in_pool, in_pool)
    settings = recipe.settings
    if recipe.kind == "trigger":
        return 0.0
    if recipe.method == "distilled":
        return float(settings["n_images"]) * 4 / 3  # the teacher answers too
    if recipe.method == "hardened":
        return float(from_scratch * training.epochs * (1 + settings["n_steps"]))
    if recipe.method in ("defense", "unlearned"):
        epochs = [value for key, value in settings.items() if key.endswith("n_epochs")]
        return float(shop.parts.defense.size * (sum(epochs) or 10))
    selecting = settings.get(f"{FUS}n_rounds", 0) * settings.get(f"{FUS}n_epochs", 0)
    return float(from_scratch * (training.epochs + selecting))


def _time_an_image(shop: Workshop) -> float:
    """Time mini-batches on a fresh network, on the device and in the precision of training."""
    table, parts, training = shop.manifest.model, shop.parts, shop.training
    classifier = new_classifier(
        table.arch,
        num_classes=parts.num_classes,
        in_channels=parts.image_shape[0],
        input_size=table.input_size,
        generator=torch.Generator().manual_seed(0),
    ).to(shop.device)
    chosen = torch.arange(min(training.batch_size, len(parts.pool)))
    images, labels = parts.pool.images(chosen).to(shop.device), parts.pool.labels[chosen]
    laps = []
    for _ in range(3):
        started = time.perf_counter()
        if shop.manifest.is_of_detectors:
            classifier.requires_grad_(True)  # a finished training froze it
            config = replace(training.tuning(), n_epochs=1)
            draws = torch.Generator().manual_seed(0)
            lessons = lessons_of(classifier, images, labels)
            finish(lessons.tune(classifier, config=config, generator=draws, title="timing"))
        else:
            gradients = gradients_in(training.precision)
            float(gradients(classifier, images, labels.to(shop.device)))  # waits for a GPU
        laps.append(time.perf_counter() - started)
    n_passed = len(whole_pictures(images)) if shop.manifest.is_of_detectors else len(chosen)
    return min(laps) / n_passed
