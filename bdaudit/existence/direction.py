"""The linear backdoor direction of a transformer, and how much of it a defence leaves.

In a transformer a backdoor is close to one direction of the residual stream: the mean of triggered
images' features less that of clean ones. Here it is read of what each block adds to that stream,
in the original, and each other model is asked how its own difference of means lies to it.

Source: "Backdoor directions in vision transformers", arXiv 2603.10806, where taking the direction
out of the weights takes the backdoor out too. There features are of one token; ours are means over
all tokens, so that they need no word of which token an architecture reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import DataError, ModelError, NumericsError
from bdaudit.existence.coefficient import ExistenceConfig
from bdaudit.existence.layers import network_of, select_layers
from bdaudit.existence.passes import PassOptions, at_work, tapped
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.records import BackdoorDirection, LayerDirection

__all__ = ["backdoor_direction", "transformer_layers"]

_FEWEST = 4


def transformer_layers(network: nn.Module, config: ExistenceConfig) -> tuple[str, ...]:
    """Name the layers by which transformer blocks add to their stream; none of other networks."""
    layers = select_layers(network, include=config.include, exclude=config.exclude)
    modules = dict(network.named_modules())
    kinds = (nn.Linear, nn.MultiheadAttention)
    return tuple(name for name in layers if isinstance(modules[name], kinds))


def backdoor_direction(
    original: nn.Module,
    defended: nn.Module,
    references: Sequence[nn.Module],
    *,
    clean: Tensor,
    triggered: Tensor,
    config: ExistenceConfig,
    device: torch.device,
) -> Steps[BackdoorDirection]:
    """Compare the backdoor direction of `defended` with that of `original`, layer by layer.

    Args:
        original: The backdoored model, a transformer.
        defended: What the defence made of it, with layers of the same names and sizes.
        references: Innocent models: what their differences have of the direction by chance, or
            because the trigger looks like something, is no backdoor. Those of another architecture
            are left out.
        clean: Images (N, C, H, W) in [0, 1] whose label is not the target; at most
            `config.n_samples` of them are used.
        triggered: The same with the trigger.
        config: Layers, number of images, batch size, precision.
        device: Where to compute.

    Returns:
        Cosines of each layer and their means.

    Raises:
        ModelError: `original` has no transformer block, or `defended` lacks a layer.
        DataError: There are fewer than four images.
        NumericsError: A layer gave activations that are not finite.
    """
    layers = transformer_layers(network_of(original), config)
    if not layers:
        raise ModelError("the original has no transformer blocks")
    clean, triggered = clean[: config.n_samples], triggered[: config.n_samples]
    if len(clean) < _FEWEST:
        raise DataError(f"expected {_FEWEST} images or more, got {len(clean)}")
    options = PassOptions(
        device=device,
        batch_size=config.batch_size,
        precision=config.precision,
        channels_last=config.channels_last,
    )
    total = 2 + len(references)
    yield Progress("existence: backdoor direction of original", 0, total)
    own = _differences(original, layers, clean, triggered, options)
    yield Progress("existence: backdoor direction of defended", 1, total)
    other = _differences(defended, layers, clean, triggered, options)
    innocents = []
    for number, reference in enumerate(references):
        yield Progress("existence: backdoor direction of references", 2 + number, total)
        try:
            found = _differences(reference, layers, clean, triggered, options)
        except ModelError:  # another architecture
            continue
        if all(found[name].shape == own[name].shape for name in layers):
            innocents.append(found)
    made = []
    for name in layers:
        if other[name].shape != own[name].shape:
            raise ModelError(f"defended: layer {name} is of another size than the original's")
        direction = own[name].mean(0)
        if not bool(direction.norm() > 0):
            continue
        moved = other[name].mean(0)
        by_chance = [_cosine(found[name].mean(0), direction) for found in innocents]
        made.append(
            LayerDirection(
                layer=name,
                cosine=_cosine(moved, direction),
                strength=float(moved @ direction / direction.square().sum()),
                halves=_cosine(own[name][0], own[name][1]),
                innocent=max(by_chance, default=None),
            )
        )
    if not made:
        raise ModelError("the trigger moves no layer of the original")
    innocent = [layer.innocent for layer in made if layer.innocent is not None]
    return BackdoorDirection(
        cosine=_mean([layer.cosine for layer in made]),
        strength=_mean([layer.strength for layer in made]),
        halves=_mean([layer.halves for layer in made]),
        innocent=_mean(innocent) if innocent else None,
        n_innocent=len(innocents),
        n_samples=len(clean),
        layers=tuple(made),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(functional.cosine_similarity(first, second, dim=0))


@dataclass
class _Sums:
    """Features of a layer, summed over tokens' means: (2, C), images in turn to two halves.

    They are summed where they are; nothing waits for a card before the end of the pass.
    """

    halves: Tensor | None = None

    def add(self, features: Tensor, start: int) -> None:
        if self.halves is None:
            shape = (2, features.shape[1])
            self.halves = torch.zeros(shape, dtype=torch.float64, device=features.device)
        for k, row in enumerate((features[start % 2 :: 2], features[1 - start % 2 :: 2])):
            self.halves[k] += row.sum(0, dtype=torch.float64)


@torch.inference_mode()
def _differences(
    model: nn.Module,
    layers: tuple[str, ...],
    clean: Tensor,
    triggered: Tensor,
    options: PassOptions,
) -> dict[str, Tensor]:
    """Return mean triggered less mean clean features by layer, (2, C), one a half of the images."""
    count = torch.tensor([(len(clean) + 1) // 2, len(clean) // 2], dtype=torch.float64)[:, None]
    means = []
    with at_work(model, options.device):
        for images in (triggered, clean):
            sums = {name: _Sums() for name in layers}
            start = 0

            def receive(name: str, maps: Tensor) -> None:
                sums[name].add(maps.mean(1, dtype=torch.float32), start)  # noqa: B023 - called within this turn

            with tapped(model, layers, receive, options) as run:
                for batch in torch.split(images, options.batch_size):
                    run(batch)
                    start += len(batch)
            means.append(
                {
                    name: each.halves.cpu() / count
                    for name, each in sums.items()
                    if each.halves is not None
                }
            )
    found = {name: means[0][name] - means[1][name] for name in layers}
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise NumericsError("a layer gave activations that are not finite")
    return found
