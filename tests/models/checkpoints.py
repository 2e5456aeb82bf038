"""Small networks and files that several tests of `bdaudit.models` open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ARCH = "bdaudit/preactresnet18_w2"
IMAGE_SHAPE = (3, 8, 8)


def tiny_network(num_classes: int = 4, in_channels: int = 3, seed: int = 0) -> nn.Module:
    """A PreAct-ResNet-18 of width 2, with batch-norm statistics that are not the initial ones."""
    from bdaudit.models import build_network

    generator = torch.Generator().manual_seed(seed)
    network = build_network(
        ARCH, num_classes=num_classes, in_channels=in_channels, generator=generator
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(generator=generator)
    return network


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


class RunsACommand:
    """Unpickled carelessly, touches a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.witness}'",)
