"""How alike a model's activations are to the original's, whatever each of them is shown.

BEC shows all models the same triggered images. Here each may be shown its own version of them: with
a perturbation, without the trigger, clean. Image by image they are the same pictures, so that CKA
can compare what the networks make of them.

Source: Zhu, Liang, Wu (NeurIPS 2024, arXiv 2405.16134), who compare the original's answer to its
trigger, the defended model's to trigger and perturbation, and its answer to a universal
perturbation made without the trigger. Which neurons they compare is not said; ours are BEC's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.existence.cka import Side, cka, gram
from bdaudit.existence.coefficient import ExistenceConfig
from bdaudit.existence.layers import network_of, select_layers
from bdaudit.existence.passes import (
    PassOptions,
    at_work,
    collect_features,
    find_shapes,
    moved_together,
)
from bdaudit.existence.tac import count_kept, measure_tac, top_channels
from bdaudit.foundation.progress import Progress, Steps

__all__ = ["Onlooker", "activation_likeness"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Onlooker:
    """A model and the images (N, C, H, W) in [0, 1] that it is shown."""

    name: str
    model: nn.Module
    images: Tensor


def activation_likeness(
    original: nn.Module,
    others: Sequence[Onlooker],
    *,
    clean: Tensor,
    triggered: Tensor,
    config: ExistenceConfig,
    device: torch.device,
) -> Steps[tuple[dict[str, float] | str, ...]]:
    """Compare what each of `others` makes of its images with what `original` makes of its trigger.

    Args:
        original: The backdoored model, which is shown `triggered`.
        others: Models of its architecture, each with its own version of the same images, in order.
        clean: The images (N, C, H, W) without anything on them.
        triggered: The same with the trigger.
        config: Share of channels, estimator, layers and batch size; the others are not used.
        device: Where to compute.

    Returns:
        For each of `others` the linear CKA by layer, over the channels that react most to the
        trigger in `original`: 1 where they are the same up to rotation and scale. Layers whose
        channels do not vary in the original are left out. Text says why a model cannot be compared.

    Raises:
        ModelError: No layer of `original` fits the patterns, or none ever runs.
    """
    options = PassOptions(
        device=device,
        batch_size=config.batch_size,
        precision=config.precision,
        channels_last=config.channels_last,
    )
    layers = select_layers(network_of(original), include=config.include, exclude=config.exclude)
    total = len(others) + 2
    yield Progress("activations of original", 0, total)
    with at_work(original, device):
        shapes = find_shapes(original, layers, clean[:1], options)
        if not shapes:
            raise ModelError(f"original: none of the layers {', '.join(layers)} ever runs")
        tac, _ = _to_the_end(measure_tac(original, {}, tuple(shapes), clean, triggered, options))
        kept = {
            layer: top_channels(values, count_kept(len(values), config.top_share))
            for layer, values in tac.items()
        }
        own = _grams(original, kept, triggered, options)
    with torch.inference_mode():
        sides = {
            layer: Side(matrix.double(), None, config.estimator)
            for layer, matrix in own.items()
            if bool(matrix.any())
        }
    found: list[dict[str, float] | str] = []
    for number, other in enumerate(others):
        yield Progress(f"activations of {other.name}", number + 2, total)
        try:
            with at_work(other.model, device):
                if find_shapes(other.model, tuple(shapes), clean[:1], options) != shapes:
                    raise ModelError("its layers are of another size than the original's")
                grams = _grams(other.model, kept, other.images, options)
        except ModelError as error:
            found.append(str(error))
            continue
        with torch.inference_mode():
            alike = {
                layer: cka(Side(grams.pop(layer).double(), None, config.estimator), side)
                for layer, side in sides.items()
            }
        found.append({k: float(v) for k, v in moved_together(alike, "cpu").items()})
    return tuple(found)


def _grams(
    model: nn.Module, channels: dict[str, Tensor], images: Tensor, options: PassOptions
) -> dict[str, Tensor]:
    features = _to_the_end(collect_features(model, channels, images, options))
    with torch.inference_mode():
        return {layer: gram(features.pop(layer)) for layer in tuple(features)}


def _to_the_end(batches: Generator[int, None, Result]) -> Result:
    """Run counted batches through without telling of each."""
    while True:
        try:
            next(batches)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
