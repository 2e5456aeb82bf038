"""A classifier built and saved as Ultralytics does, in the form of its `-cls.pt` files.

The package itself would bring OpenCV and more; what matters to a reader is the form of the file: a
mapping with `model` and `ema`, each a whole module in half precision, of classes that the reader
does not have, with settings as attributes and a batch norm of an epsilon of its own.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    default_act = nn.SiLU()

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Classify(nn.Module):
    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = Conv(c1, 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(p=0.0, inplace=True)
        self.linear = nn.Linear(16, c2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))


class ClassificationModel(nn.Module):
    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 12, 3, 2), Classify(12, num_classes))
        self.names = {k: f"class {k}" for k in range(num_classes)}
        self.yaml: dict[str, Any] = {"nc": num_classes, "backbone": [[-1, 1, "Conv", [64, 3, 2]]]}
        self.args = SimpleNamespace(imgsz=16, task="classify")
        self.stride = torch.tensor([1])

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def make(num_classes: int = 4) -> nn.Module:
    """The factory that `--arch` names."""
    return ClassificationModel(num_classes)


def trained(seed: int = 0, num_classes: int = 4) -> ClassificationModel:
    """One with statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClassificationModel(num_classes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_()
    return model.eval()


def save(path: Path, *, model: nn.Module | None, ema: nn.Module | None) -> Path:
    """Write what `ultralytics.engine.trainer.BaseTrainer.save_model` writes."""
    torch.save(
        {
            "epoch": 3,
            "best_fitness": 0.9,
            "model": None if model is None else model.half(),
            "ema": None if ema is None else ema.half(),
            "updates": 40,
            "optimizer": None,
            "train_args": {"task": "classify", "imgsz": 16, "data": "cifar10"},
            "train_metrics": {"metrics/accuracy_top1": 0.9},
            "date": "2026-01-01T00:00:00",
            "version": "8.3.0",
        },
        path,
    )
    return path
