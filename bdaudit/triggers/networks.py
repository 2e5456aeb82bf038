"""Triggers that a small network draws for every image: sample-specific and input-aware ones.

One architecture serves them all, so that a trigger file holds tensors and nothing that is run.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers.transforms import Setting, Transform

__all__ = [
    "Encoder",
    "InputAware",
    "NetworkTransform",
    "StampNetwork",
    "coloured",
    "encoded_residual",
    "sharpened",
    "stamp_network_from",
]

MAX_WIDTH = 64
"""Widest network a trigger may have: about 2 million weights."""

_CHANNELS = (1, 3)
_THRESHOLD, _SHARPNESS = 1.0, 10.0
_LEAST_SPREAD = 1e-6
# Of pixels stamped at a time: about 64 MB an activation at width 16.
_CHUNK = 2**20


class StampNetwork(nn.Module):
    """Draws a picture from a picture: down twice, up twice, with the finer maps handed over.

    Without batch norm, so that an image is treated alike in every batch. Takes any height and width
    of at least 4.

    Args:
        in_channels: Of the picture it reads.
        out_channels: Of the picture it draws.
        width: Channels at full size; twice and four times as many at a half and a quarter.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
        self.up1 = nn.Conv2d(6 * width, 2 * width, 3, padding=1)
        self.up2 = nn.Conv2d(3 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), mean 0 and spread 1 an image.

        Without that standardisation what comes after, a sigmoid or tanh, saturates in training.
        """
        full = functional.relu(self.enter(images))  # (N, w, H, W)
        half = functional.relu(self.down1(full))  # (N, 2w, H / 2, W / 2)
        quarter = functional.relu(self.down2(half))  # (N, 4w, H / 4, W / 4)
        quarter = functional.relu(self.middle(quarter))
        half = functional.relu(self.up1(_joined(quarter, half)))
        full = functional.relu(self.up2(_joined(half, full)))
        drawn = self.leave(full).float()
        mean = drawn.mean(dim=(1, 2, 3), keepdim=True)
        centred: Tensor = drawn - mean
        spread = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        return centred * (spread + _LEAST_SPREAD).rsqrt()

    @property
    def in_channels(self) -> int:
        """Channels of the picture it reads."""
        return self.enter.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the picture it draws."""
        return self.leave.out_channels


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Bring `coarse` to the size of `fine` and put the two on top of one another."""
    size = (fine.shape[-2], fine.shape[-1])
    grown = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return torch.cat([grown, fine], dim=1)


def stamp_network_from(tensors: Mapping[str, Tensor], what: str) -> StampNetwork:
    """Build the network whose tensors these are, its sizes read off their shapes.

    Args:
        tensors: By name as in `StampNetwork.state_dict()`; copied.
        what: What errors call it.

    Raises:
        ConfigError: A name is missing or unknown, a shape or type does not fit, or a value is NaN
            or infinite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first, last = shapes.get("enter.weight", ()), shapes.get("leave.weight", ())
    if len(first) != 4 or len(last) != 4 or not 1 <= first[0] <= MAX_WIDTH:
        raise ConfigError(
            f"{what}: expected the tensors of a stamp network of width 1 to {MAX_WIDTH}, got "
            f"{_shown(shapes)}"
        )
    if not (1 <= first[1] <= 8 and 1 <= last[0] <= 8):
        raise ConfigError(
            f"{what}: expected 1 to 8 channels in and out, got {first[1]} and {last[0]}"
        )
    with torch.random.fork_rng(devices=[]):  # the initial weights it draws are thrown away
        network = StampNetwork(first[1], last[0], first[0])
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if shapes != expected:
        wrong = {name: shape for name, shape in shapes.items() if expected.get(name) != shape}
        missing = sorted(expected.keys() - shapes.keys())
        raise ConfigError(
            f"{what}: expected the tensors of a stamp network of width {first[0]}; wrong: "
            f"{_shown(wrong)}; missing: {', '.join(missing) or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise ConfigError(f"{what}: {name}: expected finite float32, got {tensor.dtype}")
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)


def _shown(shapes: Mapping[str, Sequence[int]]) -> str:
    some = [f"{name[:40]} {tuple(shape)}" for name, shape in list(shapes.items())[:4]]
    return ", ".join(some) or "none"


class NetworkTransform(Transform):
    """Base of the kinds that are networks. Their tensors lie in one file, its key `weights`."""

    @abstractmethod
    def change(self, images: Tensor) -> Tensor:
        """Change float32 images (n, C, H, W), few enough at a time."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the images it stamps."""

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Stamp `images` (N, C, H, W), in float32 whatever the surroundings compute in."""
        self.require_fit(images)
        with torch.autocast(images.device.type, enabled=False):
            parts = torch.split(images.float(), self.chunk_of(images))
            return torch.cat([self.change(part) for part in parts])

    def require_fit(self, images: Tensor) -> None:
        """Raise a TriggerError unless it can stamp these images."""
        if images.shape[1] != self.channels or min(images.shape[-2:]) < 4:
            raise TriggerError(
                f"{self.kind} trigger of {self.channels} channels does not fit images of "
                f"{tuple(images.shape[1:])}; it needs its own channels and at least 4x4 pixels"
            )

    @staticmethod
    def chunk_of(images: Tensor) -> int:
        """Return how many images are stamped at a time."""
        return max(1, _CHUNK // (images.shape[-2] * images.shape[-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class InputAware(NetworkTransform):
    """A pattern of its own for every image, where a mask of its own says: `x (1 - m) + p m`.

    Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack" (NeurIPS 2020), whose networks
    are larger and have batch norm. As theirs, the mask is driven toward 0 and 1, and kept sparse:
    `m = sigmoid(10 (M(x) - 1))` with M(x) of spread 1; the pattern is `p = sigmoid(2 G(x))`.

    Attributes:
        pattern: G, from the image's channels to as many.
        mask: M, from the image's channels to 1.
    """

    kind: ClassVar[str] = "input-aware"
    pattern: StampNetwork
    mask: StampNetwork

    def __post_init__(self) -> None:
        channels = self.pattern.in_channels
        if (
            channels not in _CHANNELS
            or self.pattern.out_channels != channels
            or (self.mask.in_channels, self.mask.out_channels) != (channels, 1)
        ):
            raise ConfigError(
                "input-aware: expected a pattern network from 1 or 3 channels to as many and a "
                f"mask network from those to 1, got {channels} to {self.pattern.out_channels} and "
                f"{self.mask.in_channels} to {self.mask.out_channels}"
            )

    @property
    def channels(self) -> int:
        """Channels of the images it stamps."""
        return self.pattern.in_channels

    def change(self, images: Tensor) -> Tensor:
        """Mix into each image its own pattern."""
        return self._mix(images, images)

    def stamp_as(self, images: Tensor, sources: Tensor) -> Tensor:
        """Stamp `images` (N, C, H, W) with what `sources`, as many other images, would get."""
        self.require_fit(images)
        with torch.autocast(images.device.type, enabled=False):
            chunk = self.chunk_of(images)
            parts = zip(torch.split(images, chunk), torch.split(sources, chunk), strict=True)
            return torch.cat([self._mix(*part) for part in parts]).clamp(0, 1)

    def _mix(self, images: Tensor, sources: Tensor) -> Tensor:
        pattern = coloured(_run(self.pattern, sources))
        mask = sharpened(_run(self.mask, sources))
        return images * (1 - mask) + pattern * mask

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of both networks."""
        return {
            **{f"pattern.{name}": value for name, value in self.pattern.state_dict().items()},
            **{f"mask.{name}": value for name, value in self.mask.state_dict().items()},
        }

    def settings(self) -> dict[str, Setting]:
        """Return nothing: the weights are all there is."""
        return {}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InputAware:
        """Build it from the weights of both networks."""
        parts = _split_by_network(tensors, ("pattern", "mask"), cls.kind)
        return cls(**{name: stamp_network_from(part, name) for name, part in parts.items()})


def coloured(drawn: Tensor) -> Tensor:
    """Turn what a pattern network draws into pixels in (0, 1)."""
    return (2 * drawn).sigmoid()


def sharpened(drawn: Tensor) -> Tensor:
    """Turn what a mask network draws into a mask in (0, 1): 1 where it stands out of its image."""
    return (_SHARPNESS * (drawn - _THRESHOLD)).sigmoid()


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder(NetworkTransform):
    """A faint residual that hides a fixed message in every image: `x + eps tanh(E(x, message))`.

    Source: Li et al., "Invisible Backdoor Attack with Sample-Specific Triggers" (ICCV 2021), who
    use the steganographic network of Tancik et al. (2020).

    Attributes:
        network: E, from the image's channels and one for the message to the image's.
        message: (1, h, w), resized to the images (bilinear) and read beside them.
        eps: Largest change of a pixel, in (0, 1].
    """

    kind: ClassVar[str] = "encoder"
    network: StampNetwork
    message: Tensor
    eps: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", float(self.eps))
        channels = self.network.out_channels
        if channels not in _CHANNELS or self.network.in_channels != channels + 1:
            raise ConfigError(
                "encoder: expected a network from 2 channels to 1 or from 4 to 3, got "
                f"{self.network.in_channels} to {channels}"
            )
        message = self.message
        if message.ndim != 3 or message.shape[0] != 1 or not 1 <= message.numel() <= 2**16:
            raise ConfigError(
                f"message: expected (1, h, w) of at most 65,536 values, got {tuple(message.shape)}"
            )
        if message.dtype != torch.float32 or not torch.isfinite(message).all():
            raise ConfigError(f"message: expected finite float32, got {message.dtype}")
        if not (math.isfinite(self.eps) and 0 < self.eps <= 1):
            raise ConfigError(f"eps: expected a fraction of the range in (0, 1], got {self.eps}")

    @property
    def channels(self) -> int:
        """Channels of the images it stamps."""
        return self.network.out_channels

    def change(self, images: Tensor) -> Tensor:
        """Add to each image its residual."""
        message = self.message[None].to(images).expand(len(images), -1, -1, -1)
        return images + encoded_residual(partial(_run, self.network), images, message, self.eps)

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and the message."""
        weights = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return {**weights, "message": self.message}

    def settings(self) -> dict[str, Setting]:
        """Return `eps`."""
        return {"eps": self.eps}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, eps: float) -> Encoder:
        """Build it from the weights, the message and `eps`."""
        if "message" not in tensors:
            raise ConfigError("encoder: expected a tensor called 'message'")
        weights = {name: value for name, value in tensors.items() if name != "message"}
        part = _split_by_network(weights, ("network",), cls.kind)["network"]
        return cls(network=stamp_network_from(part, "network"), message=tensors["message"], eps=eps)


def encoded_residual(
    network: Callable[[Tensor], Tensor], images: Tensor, messages: Tensor, eps: float
) -> Tensor:
    """Return what `Encoder` adds to `images` (n, C, H, W) for `messages` (n, 1, h, w)."""
    size = (images.shape[-2], images.shape[-1])
    plane = functional.interpolate(messages, size=size, mode="bilinear", align_corners=False)
    return eps * network(torch.cat([images, plane], dim=1)).tanh()


def _split_by_network(
    tensors: Mapping[str, Tensor], networks: Sequence[str], kind: str
) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in networks}
    for name, tensor in tensors.items():
        network, _, inner = name.partition(".")
        if network not in parts:
            raise ConfigError(
                f"{kind}: expected tensors of {' and '.join(networks)}, got {name[:40]!r}"
            )
        parts[network][inner] = tensor
    return parts


def _run(network: StampNetwork, images: Tensor) -> Tensor:
    """Run a network where the images are, without moving it."""
    weights = {name: value.to(images) for name, value in network.state_dict().items()}
    drawn: Tensor = functional_call(network, weights, (images,))
    return drawn
