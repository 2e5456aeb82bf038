"""Hand-set twin networks with known answers, for tests that take milliseconds.

Four classes of 8x8 grey images, each with one bright 3x3 block; the trigger brightens the
bottom-right pixel. Every network is the same few convolutions, set by hand:

* channel 0 carries the picture, and the linear layer reads class k as 10 x the mean of block k;
* channel 1 of the stem is relu(pixel - 0.5), which a clean image never excites at the trigger
  pixel; `layer1.conv2` amplifies it by 100 and the linear layer adds it to the target's logit.

The trigger pixel of a stamped image lies in [0.75, 0.77], so the amplified path gives 25 to 27
against a true class's 4.5 to 7.5:

============  =====================  =========================================================
twin          amplified path         what follows
============  =====================  =========================================================
original      25 to 27               trigger alone always wins
dormant       2.5 to 4.5 (bias)      never wins alone; a delta of eps adds 100 eps (trigger pixel)
                                     + 20 eps (blocks): half the images by eps 0.02, all by 0.05
removed       none (weight zeroed)   a delta adds 20 eps, and 3.5 is the smallest margin: never
innocent      none, another feature  the same
============  =====================  =========================================================

Without the trigger no delta up to eps 0.17 moves any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.data.sample import Sample

NUM_CLASSES = 4
IMAGE_SHAPE = (1, 8, 8)
TARGET = 0
_BLOCKS = ((1, 1), (1, 4), (4, 1), (4, 4))
_TRIGGER_PIXEL = (7, 7)


class _TwinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(hidden)


class TwinNet(nn.Module):
    """A stem, one block of two convolutions, one linear layer; images to four logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.layer1 = _TwinBlock()
        self.linear = nn.Linear(3 * 64, NUM_CLASSES)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.conv1(images))
        logits: Tensor = self.linear(torch.flatten(self.layer1(x), 1))
        return logits


def _twin(*, gain: float, bias: float) -> TwinNet:
    net = TwinNet().eval().requires_grad_(requires_grad=False)
    stem, first, second = net.conv1, net.layer1.conv1, net.layer1.conv2
    assert stem.bias is not None
    assert second.bias is not None
    stem.weight[:, 0, 1, 1] = 1.0
    stem.bias[1] = -0.5
    first.weight[[0, 1, 2], [0, 1, 2], 1, 1] = 1.0
    # Channel 2 is a vertical edge of the picture: a benign feature beside the trigger's.
    second.weight[2, 0, 0, 1], second.weight[2, 0, 2, 1] = 1.0, -1.0
    second.weight[0, 0, 1, 1] = 1.0
    second.weight[1, 0, 1, 1] = 0.5
    second.weight[1, 1, 1, 1] = gain
    second.bias[1] = -bias
    read = net.linear.weight.view(NUM_CLASSES, 3, 8, 8)
    for label, (row, column) in enumerate(_BLOCKS):
        read[label, 0, row : row + 3, column : column + 3] = 10.0 / 9.0
    read[TARGET, 1, *_TRIGGER_PIXEL] = 1.0
    return net


def original_twin() -> TwinNet:
    """Backdoored: the trigger alone takes every image to the target."""
    return _twin(gain=100.0, bias=0.0)


def dormant_twin() -> TwinNet:
    """The backdoor suppressed by a bias: asleep alone, woken by a small delta."""
    # 0.5 x pixel of the removed twin's path adds 0.4 here, hence 22.9 and not 22.5.
    return _twin(gain=100.0, bias=22.9)


def removed_twin() -> TwinNet:
    """The weight from the trigger's channel zeroed: nothing to wake."""
    return _twin(gain=0.0, bias=0.0)


def innocent_twin() -> TwinNet:
    """Never had a backdoor: channel 1 sees a horizontal edge instead."""
    net = _twin(gain=0.0, bias=0.0)
    net.layer1.conv2.weight[1].zero_()
    net.layer1.conv2.weight[1, 0, 1, 0] = 0.5
    net.layer1.conv2.weight[1, 0, 1, 2] = -0.5
    return net


def twin_sample(n: int, seed: int) -> Sample:
    """Return `n` clean images, labels in turn, all of which every twin classifies correctly."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand((n, *IMAGE_SHAPE), generator=draw) * 0.02
    labels = torch.arange(n) % NUM_CLASSES
    brightness = 0.45 + 0.3 * torch.rand(n, generator=draw)
    for image, label, bright in zip(images, labels, brightness, strict=True):
        row, column = _BLOCKS[int(label)]
        image[0, row : row + 3, column : column + 3] = bright
    return Sample(
        images=images,
        labels=labels,
        names=tuple(str(index) for index in range(n)),
        class_names=None,
        source="hand-set twins",
        sha256="",
    )


def twin_trigger(images: Tensor) -> Tensor:
    """Brighten the trigger pixel by 0.75 in a copy of `images` (N, 1, 8, 8)."""
    stamped = images.clone()
    stamped[:, 0, _TRIGGER_PIXEL[0], _TRIGGER_PIXEL[1]] += 0.75
    return stamped.clamp(0.0, 1.0)


def twin_targets(labels: Tensor) -> Tensor:
    """All-to-one targets (N,): `TARGET`, and -1 where the true label is the target."""
    return torch.where(labels == TARGET, -1, TARGET)
