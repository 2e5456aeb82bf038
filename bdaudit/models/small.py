"""Small networks for small images, at any width: VGG-19, MobileNetV2 and a vision transformer.

All end in global pooling, take any number of channels and, but for the transformer, any image of at
least 28x28 pixels. Names are our own; torchvision's networks of the same kind, which are made for
224x224 pixels, stay under `torchvision/`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SmallMobileNet", "SmallVgg", "SmallViT"]

# Channels in units of the width, "M" halves the image: configuration E of the paper.
_VGG19 = (1, 1, "M", 2, 2, "M", 4, 4, 4, 4, "M", 8, 8, 8, 8, "M", 8, 8, 8, 8)

# Expansion, channels in units of the width, blocks, stride of the first.
_MOBILENET_V2 = (
    (1, 0.5, 1, 1),
    (6, 0.75, 2, 1),
    (6, 1, 3, 2),
    (6, 2, 4, 2),
    (6, 3, 3, 1),
    (6, 5, 3, 2),
    (6, 10, 1, 1),
)


class SmallVgg(nn.Module):
    """VGG-19 with batch norm: sixteen 3x3 convolutions, global average pooling, one linear layer.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition" (ICLR 2015). Its three linear layers and last pooling are for 224x224 pixels; ours
    has one layer, as is usual for small images. The paper's width is 64.
    """

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for part in _VGG19:
            if isinstance(part, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, part * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(part * width),
                nn.ReLU(inplace=True),
            ]
            channels = part * width
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.head(self.convolutions(x).mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """A 1x1 convolution out, a depthwise 3x3 one, a 1x1 one back, around an identity path."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _activated(nn.Conv2d(in_channels, inner, 1, bias=False))
        depthwise = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.depthwise = _activated(depthwise)
        self.project = nn.Sequential(
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.adds else out


class SmallMobileNet(nn.Module):
    """MobileNetV2 with strides for small images: the stem and the second stage keep the size.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018).
    The paper's network has width 32 here.
    """

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        self.stem = _activated(nn.Conv2d(in_channels, width, 3, padding=1, bias=False))
        channels, blocks = width, []
        for expansion, share, depth, first_stride in _MOBILENET_V2:
            wanted = max(1, round(share * width))
            for index in range(depth):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, wanted, stride, expansion))
                channels = wanted
        self.blocks = nn.Sequential(*blocks)
        self.last = _activated(nn.Conv2d(channels, 40 * width, 1, bias=False))
        self.head = nn.Linear(40 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, in_channels, H, W) to logits (N, num_classes)."""
        out = self.last(self.blocks(self.stem(x)))  # (N, 40 w, H / 8, W / 8)
        logits: Tensor = self.head(out.mean(dim=(2, 3)))
        return logits


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(
        convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6(inplace=True)
    )


class AttentionBlock(nn.Module):
    """Self-attention and an MLP of twice the width, each behind layer norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, width) to as many."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SmallViT(nn.Module):
    """A vision transformer of six blocks on patches of 4x4 pixels, its tokens averaged.

    Sines and cosines tell where a patch lies, so that any image whose sides are multiples of 4 is
    taken.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021); averaged tokens and
    fixed positions from Beyer et al., "Better plain ViT baselines for ImageNet-1k" (2022).
    """

    def __init__(self, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(in_channels, width, 4, stride=4)
        self.blocks = nn.Sequential(*[AttentionBlock(width, max(1, width // 16)) for _ in range(6)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, in_channels, H, W) to logits (N, num_classes)."""
        patches = self.patch_embed(x)  # (N, width, H / 4, W / 4)
        patches = patches + _positions(patches)
        tokens = self.norm(self.blocks(patches.flatten(2).transpose(1, 2)))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def _positions(patches: Tensor) -> Tensor:
    """Return (width, h, w): sines and cosines of the row, then of the column, of each patch."""
    width, height, across = patches.shape[1:]
    quarter = width // 4
    rates = 100.0 ** -(torch.arange(quarter, device=patches.device) / max(1, quarter - 1))
    rows = rates[:, None, None] * torch.arange(height, device=patches.device)[:, None]
    columns = rates[:, None, None] * torch.arange(across, device=patches.device)
    rows, columns = rows.expand(-1, -1, across), columns.expand(-1, height, -1)
    parts = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])
    return parts.to(patches)
