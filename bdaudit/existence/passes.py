"""Forward passes that read chosen layers and stop at the last of them.

What a layer gives is read as *maps* (n, positions, channels): for a convolution the positions are
the pixels of its output, for a transformer its tokens. That is the memory order of tokens and of
channels-last convolutions, so the view costs nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.existence.layers import READABLE, network_of

__all__ = [
    "MapShape",
    "PassOptions",
    "at_work",
    "collect_features",
    "find_shapes",
    "moved_together",
    "tapped",
]

Receive = Callable[[str, Tensor], None]
"""Takes the name of a layer and its maps (n, positions, channels), in the type of the pass."""


@dataclass(frozen=True, slots=True)
class MapShape:
    """Size of one layer's maps for one image."""

    positions: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """How a forward pass is run.

    Attributes:
        device: Where.
        batch_size: Images a pass.
        precision: "bfloat16" runs the pass under autocast; sums and what is kept are float32.
        channels_last: Hand images over in channels-last memory order. Same numbers up to
            rounding.
    """

    device: torch.device
    batch_size: int
    precision: Literal["float32", "bfloat16"]
    channels_last: bool

    def place(self, images: Tensor) -> Tensor:
        """Move images (n, C, H, W) to the device, in the wanted memory order."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.to(self.device).contiguous(memory_format=order)


class _LayersNotRunError(ModelError):
    """A forward pass ended without reaching every layer."""


class _AllLayersRead(BaseException):
    """Ends a forward pass early; not an `Exception`, so that no network swallows it."""


@contextmanager
def at_work(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put `model` in eval mode on `device`; put every mode and the device back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    tensor = next(chain(model.parameters(), model.buffers()), None)
    home = device if tensor is None else tensor.device
    try:
        model.eval()
        if home != device:
            model.to(device)
        yield
    finally:
        if home != device:
            model.to(home)
        for module, training in modes:
            module.training = training


@contextmanager
def tapped(
    model: nn.Module, layers: Collection[str], receive: Receive, options: PassOptions
) -> Iterator[Callable[[Tensor], None]]:
    """Tap the layers named `layers`; the hooks are gone when the context ends.

    Args:
        model: A classifier, or any module; names are those of its bare network.
        layers: At least one name.
        receive: Told of each layer's maps as soon as they exist, in the order of the pass.
        options: How to run.

    Yields:
        A function that runs one batch of images (n, C, H, W) in [0, 1] up to the last of
        `layers` to be computed. It gives nothing back and raises `ModelError` when a layer does
        not run, or runs twice.

    Raises:
        ModelError: The network has no layer of one of the names.
    """
    modules = dict(network_of(model).named_modules())
    missing = [name for name in layers if not isinstance(modules.get(name), READABLE)]
    if missing:
        raise ModelError(_no_such_layers(network_of(model), missing))
    unread = set(layers)
    n_images = 0

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if name not in unread:
                raise ModelError(
                    f"layer {name} runs more than once in one forward pass, so that its maps are "
                    "ambiguous; leave it out by an exclude pattern"
                )
            receive(name, _maps(name, module, output, n_images))
            unread.discard(name)
            if not unread:
                raise _AllLayersRead

        return hook

    def run(images: Tensor) -> None:
        nonlocal n_images
        n_images = images.shape[0]
        unread.update(layers)
        autocast = torch.autocast(
            options.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"
        )
        try:
            with autocast:
                model(options.place(images))
        except _AllLayersRead:
            return
        raise _LayersNotRunError(
            f"{type(network_of(model)).__name__}: {', '.join(sorted(unread))} did not run in a "
            "forward pass; leave them out by an exclude pattern"
        )

    handles = [modules[name].register_forward_hook(hook_of(name)) for name in layers]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def find_shapes(
    model: nn.Module, layers: Collection[str], image: Tensor, options: PassOptions
) -> dict[str, MapShape]:
    """Run one image (1, C, H, W) and tell the size of every layer's maps.

    Returns:
        A size for every layer that ran; a layer that only training uses is not among them.

    Raises:
        ModelError: The network has no such layer, or one runs twice.
    """
    shapes: dict[str, MapShape] = {}

    def receive(name: str, maps: Tensor) -> None:
        shapes[name] = MapShape(positions=maps.shape[1], channels=maps.shape[2])

    with tapped(model, layers, receive, options) as run, suppress(_LayersNotRunError):
        run(image)
    return shapes


# The decorator enters inference mode only while the generator itself runs, not between its yields.
@torch.inference_mode()
def collect_features(
    model: nn.Module, channels: Mapping[str, Tensor], images: Tensor, options: PassOptions
) -> Generator[int, None, dict[str, Tensor]]:
    """Keep chosen channels of chosen layers for all images.

    Args:
        model: As for `tapped`.
        channels: For every layer wanted, the indices (k,) of the channels to keep, on the CPU.
        images: (N, C, H, W) in [0, 1].
        options: How to run.

    Yields:
        The number of images of each batch once it is done.

    Returns:
        For every layer a float32 tensor (N, positions, k) on the device.
    """
    store = FeatureStore(len(images))
    wanted = moved_together(channels, options.device)

    def receive(name: str, maps: Tensor) -> None:
        store.put(name, maps, wanted[name], start)

    with tapped(model, channels, receive, options) as run:
        for start in range(0, len(images), options.batch_size):
            batch = images[start : start + options.batch_size]
            run(batch)
            yield len(batch)
    return store.features


class FeatureStore:
    """Chosen channels of layers, filled batch by batch into one float32 buffer a layer.

    Args:
        n_images: N, the number of images of the whole run.
    """

    def __init__(self, n_images: int) -> None:
        self.n_images = n_images
        self.features: dict[str, Tensor] = {}

    def put(self, layer: str, maps: Tensor, channels: Tensor, start: int) -> None:
        """Store channels (k,) of maps (n, positions, C) as images `start` to `start + n`."""
        n, positions, _ = maps.shape
        if layer not in self.features:
            shape = (self.n_images, positions, len(channels))
            self.features[layer] = torch.empty(shape, device=maps.device)
        # gather, since it reads a few interleaved channels several times faster than indexing.
        picked = maps.gather(2, channels.expand(n, positions, -1))
        self.features[layer][start : start + n] = picked


def moved_together(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Move vectors of one type to `device` in a single copy, which waits for a card once."""
    if not tensors:
        return {}
    parts = torch.cat(list(tensors.values())).to(device)
    sizes = [len(tensor) for tensor in tensors.values()]
    return dict(zip(tensors, torch.split(parts, sizes), strict=True))


def _maps(name: str, module: nn.Module, output: Any, n_images: int) -> Tensor:
    """View a layer's output as (n_images, positions, channels)."""
    maps: Tensor = output[0] if isinstance(output, tuple) else output
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        maps = maps.transpose(0, 1)
    elif not isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        maps = maps.movedim(1, -1)
    # Window attention folds the windows of an image into the batch, image by image.
    if maps.numel() % (n_images * maps.shape[-1]) or maps.shape[0] % n_images:
        raise ModelError(
            f"layer {name}: expected an output with the {n_images} images of the batch first, got "
            f"shape {tuple(maps.shape)}; leave it out by an exclude pattern"
        )
    return maps.reshape(n_images, -1, maps.shape[-1])


def _no_such_layers(network: nn.Module, missing: list[str]) -> str:
    shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if missing[4:] else "")
    return (
        f"{type(network).__name__} has no layer {shown} to compare, which the original has; "
        "layers are matched by name, so the model must be of the original's architecture"
    )
