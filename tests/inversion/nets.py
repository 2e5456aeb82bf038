"""Nets beside the twins: one woken by a faint trigger, and a small linear one of many classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.twins import NUM_CLASSES, TwinNet, innocent_twin, original_twin


def faint_twin() -> TwinNet:
    """Backdoored: the trigger pixel above .05 is amplified by 1,000, so a delta of .06 wakes it."""
    net = original_twin()
    net.conv1.bias[1] = -0.05
    net.layer1.conv2.weight[1, 1, 1, 1] = 1000.0
    return net


def another_innocent(seed: int) -> TwinNet:
    """An innocent twin whose weights differ a little from the other's."""
    net = innocent_twin()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net.linear.weight += 0.002 * torch.randn(net.linear.weight.shape, generator=draw)
    return net


class LinearNet(nn.Module):
    """A linear classifier of 4x4 images; those of different seeds are nearly alike.

    With `weak` one class has a large weight on the last pixel, which clean images leave dark.
    """

    def __init__(self, num_classes: int, seed: int, weak: int | None = None) -> None:
        super().__init__()
        weight = 0.3 * torch.randn(num_classes, 16, generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(seed)
        weight += 0.01 * torch.randn(num_classes, 16, generator=draw)
        weight[:, 15] = 0.0
        if weak is not None:
            weight[weak, 15] = 50.0
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def linear_sample(net: LinearNet, n: int) -> tuple[Tensor, Tensor]:
    """Images with pixel 15 dark, labelled as `net` answers."""
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[:, 0, 3, 3] = 0.0
    return images, net(images).argmax(1)


class MovedNet(nn.Module):
    """An innocent twin that answers class 0 as the dark border brightens, top or left.

    Clean images are dark there; moving a block by part of a pixel lights it up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = innocent_twin()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        seam = images[:, 0, :, 0].amax(1) + images[:, 0, 0, :].amax(1)
        bonus = torch.zeros_like(logits)
        bonus[:, 0] = 100.0 * functional.relu(seam - 0.08)
        return logits + bonus


class MappedNet(nn.Module):
    """A twin in which the trigger pixel, when bright, moves class y to another: all-to-all.

    Args:
        classes: Where each class goes.
    """

    def __init__(self, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = innocent_twin()
        self.order = torch.tensor(classes).argsort()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        lit = (2 * functional.relu(images[:, 0, 7, 7:] - 0.05)).clamp(max=1.0)  # (N, 1)
        return (1 - lit) * logits + lit * logits[:, self.order]


class _TokenBlock(nn.Module):
    """Adds to each token's last feature what it finds in the one before, above a threshold."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(17, 1)
        self.fc2 = nn.Linear(1, 17)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.fc1.weight[0, 15] = 1.0
            self.fc1.bias[0] = -0.03
            self.fc2.weight[16, 0] = gain

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(functional.relu(self.fc1(tokens)))
        return tokens + hidden


class TokenNet(nn.Module):
    """The twins' task on tokens: four patches of 4x4 pixels and a feature, through two blocks.

    Args:
        gain: By which the first block amplifies a bright trigger pixel, which the head reads as
            class 0; 0 of an innocent one.
        seed: Of small differences between models.
    """

    def __init__(self, gain: float, seed: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_TokenBlock(gain), _TokenBlock(0.0))
        twin = another_innocent(seed)
        self.head = nn.Linear(4 * 17, NUM_CLASSES)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            read = twin.linear.weight.view(NUM_CLASSES, 3, 8, 8)[:, 0]
            patches = read.unflatten(1, (2, 4)).unflatten(3, (2, 4)).transpose(2, 3)
            weight = self.head.weight.view(NUM_CLASSES, 4, 17)
            weight.zero_()
            weight[:, :, :16] = patches.reshape(NUM_CLASSES, 4, 16)
            weight[0, 3, 16] = 1.0
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, images: Tensor) -> Tensor:
        patches = images[:, 0].unflatten(1, (2, 4)).unflatten(3, (2, 4)).transpose(2, 3)
        tokens = functional.pad(patches.reshape(len(images), 4, 16), (0, 1))
        logits: Tensor = self.head(self.blocks(tokens).flatten(1))
        return logits


class PixelNet(nn.Module):
    """Class k is read from pixel k alone, times its size: that is its largest margin in [0, 1]."""

    sizes: Tensor

    def __init__(self, sizes: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.tensor(sizes))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(self.sizes)] * self.sizes
