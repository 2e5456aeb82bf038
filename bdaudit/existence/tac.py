"""Trigger-activated change: how much each channel of a layer reacts to the trigger.

    tac_k = mean_i ||a_k(x_i) - a_k(T(x_i))|| / mean over clean and triggered inputs of ||a_k||

with a_k the map of channel k flattened to a vector, x_i an image and T(x_i) the same image with the
trigger on it.

Source: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022), and
Zhu, Liang, Wu (NeurIPS 2024, arXiv 2405.16134), who divide by the channel's own activity as here.
"""

from __future__ import annotations

from collections.abc import Generator
from math import floor

import torch
from torch import Tensor, nn

from bdaudit.errors import NumericsError
from bdaudit.existence.passes import FeatureStore, PassOptions, moved_together, tapped

__all__ = ["ActivityTotals", "count_kept", "measure_tac", "top_channels"]

SPARE = 2
"""The first batch's shortlist holds this many times the channels that will be kept."""


class ActivityTotals:
    """Running sums from which the TAC of one layer's channels follows, where the maps are.

    Sums are float64: a sum of thousands of norms must not depend on the batch size.
    """

    def __init__(self) -> None:
        self.changes: Tensor | float = 0.0
        self.activity: Tensor | float = 0.0

    def add(self, maps: Tensor) -> None:
        """Count pairs of maps (2n, positions, channels): n of clean images, then their partners."""
        clean, triggered = maps.chunk(2)
        change = clean.float() - triggered
        self.changes = self.changes + _channel_norms(change, change)
        self.activity = self.activity + _channel_norms(maps)

    def tac(self) -> Tensor:
        """Return the TAC (channels,), at least 0 and at most 2; 0 for a channel always at zero."""
        changes, activity = torch.as_tensor(self.changes), torch.as_tensor(self.activity) / 2
        return torch.where(activity > 0, changes / activity, activity)


def _channel_norms(maps: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Sum over images of the norm of every channel's map: (n, positions, C) to (C,).

    `scratch` is memory that may be written over: `maps` themselves, if nobody reads them again.
    """
    if maps.is_cuda:  # reads the maps once and writes nothing of their size
        norms: Tensor = torch.linalg.vector_norm(maps, dim=1, dtype=torch.float32)
    else:  # where that takes up to eighty times as long
        norms = torch.square(maps.float(), out=scratch).sum(1).sqrt_()
    return norms.sum(0, dtype=torch.float64)


def count_kept(channels: int, share: float) -> int:
    """How many of `channels` the top `share` is: rounded down, at least one."""
    # The small term keeps 0.07 * 100 = 7.000000000000001 and 0.29 * 100 = 28.999999999999996 right.
    return max(1, floor(share * channels + 1e-9))


def top_channels(tac: Tensor, count: int) -> Tensor:
    """Indices (count,) of the largest values, largest first; the lower index first among equals."""
    return torch.sort(tac, descending=True, stable=True).indices[:count]


# The decorator enters inference mode only while the generator itself runs, not between its yields.
@torch.inference_mode()
def measure_tac(
    model: nn.Module,
    shortlists: dict[str, int],
    others: tuple[str, ...],
    clean: Tensor,
    triggered: Tensor,
    options: PassOptions,
) -> Generator[int, None, tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]]:
    """Measure the TAC of every channel and keep, on the way, what will probably be needed later.

    Which channels to keep is known only at the end of the pass, and a second pass over the
    triggered images would cost a quarter more. So the first batch ranks the channels, and from
    then on the triggered maps of a shortlist are kept. Who needs a channel that was not on it has
    to run the layer again; the result never depends on the shortlist.

    Args:
        model: As for `passes.tapped`.
        shortlists: Layers to keep triggered maps of, with the number of channels to shortlist.
        others: Layers to measure without keeping maps.
        clean: Images (N, C, H, W) in [0, 1].
        triggered: The same images with the trigger on them.
        options: How to run.

    Yields:
        The number of images, clean and triggered, of each batch once it is done.

    Returns:
        The TAC (channels,) by layer, on the CPU; and by layer of `shortlists` the indices (s,) of
        the channels kept, on the CPU, with their triggered maps (N, positions, s) on the device.
        The device is waited for at the end of the pass alone.

    Raises:
        NumericsError: A layer gave a number that is not finite.
    """
    totals = {layer: ActivityTotals() for layer in (*shortlists, *others)}
    listed: dict[str, Tensor] = {}
    store = FeatureStore(len(triggered))

    def receive(layer: str, maps: Tensor) -> None:
        totals[layer].add(maps)
        if layer not in shortlists:
            return
        if layer not in listed:
            listed[layer] = top_channels(totals[layer].tac(), shortlists[layer])
        store.put(layer, maps[len(maps) // 2 :], listed[layer], start)

    pairs_per_batch = max(1, options.batch_size // 2)
    with tapped(model, tuple(totals), receive, options) as run:
        for start in range(0, len(clean), pairs_per_batch):
            stop = start + pairs_per_batch
            pairs = torch.cat([clean[start:stop], triggered[start:stop]])
            run(pairs)
            yield len(pairs)
    tac = moved_together({layer: each.tac() for layer, each in totals.items()}, "cpu")
    for layer, values in tac.items():
        if not bool(values.isfinite().all()):
            raise NumericsError(
                f"original: layer {layer} gave activations that are not finite; check the weights "
                "and the preprocessing"
            )
    listed = moved_together(listed, "cpu")
    return tac, {layer: (listed[layer], maps) for layer, maps in store.features.items()}
