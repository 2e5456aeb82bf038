"""PreAct-ResNet-18 for small images, at any width.

The pre-activation residual network of He et al., "Identity Mappings in Deep Residual Networks"
(ECCV 2016), in the 32x32 form that backdoor research uses. Parameter names are those of
BackdoorBench's `preactresnet18`, so its checkpoints load without a rename.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.models.memory_order import FEW_CHANNELS, PixelsPickedFirst

__all__ = ["PreActBlock", "PreActResNet", "preactresnet18"]


def _projection(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    kind = PixelsPickedFirst if in_channels < FEW_CHANNELS and stride != 1 else nn.Conv2d
    return kind(in_channels, channels, 1, stride=stride, bias=False)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each preceded by batch norm and ReLU, around an identity path."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=1, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(_projection(in_channels, channels, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        activated = functional.relu(self.bn1(x))
        # The projection reads the activated input, the identity reads the raw one.
        identity = x if self.shortcut is None else self.shortcut(activated)
        out = self.conv1(activated)
        residual: Tensor = self.conv2(functional.relu(self.bn2(out)))
        return residual + identity


class PreActResNet(nn.Module):
    """Four stages of `PreActBlock`, global average pooling, one linear layer."""

    def __init__(
        self, blocks: tuple[int, int, int, int], num_classes: int, width: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=1, padding=1, bias=False)
        stages = []
        channels_in = width
        for index, depth in enumerate(blocks):
            channels = width * 2**index
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            stage = []
            for stride in strides:
                stage.append(PreActBlock(channels_in, channels, stride))
                channels_in = channels
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.linear = nn.Linear(channels_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, in_channels, H, W) to logits (N, num_classes)."""
        out = self.conv1(x)  # (N, width, H, W)
        out = self.layer1(out)
        out = self.layer2(out)
        out = self.layer3(out)
        out = self.layer4(out)  # (N, 8 * width, H / 8, W / 8)
        logits: Tensor = self.linear(torch.flatten(self.avgpool(out), 1))
        return logits


def preactresnet18(num_classes: int, *, width: int = 64, in_channels: int = 3) -> PreActResNet:
    """Build a PreAct-ResNet-18 with `width` channels in its first stage (the paper's: 64)."""
    return PreActResNet((2, 2, 2, 2), num_classes, width, in_channels)
