"""How fast this machine is with a model, by kind of work, tried for a moment."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.cases.subjects import Subject
from bdaudit.measuring.compute import Compute

__all__ = ["Speed", "measure_speed", "speed_on"]

_LEAST_S = 0.05  # a trial that takes less says little
_FIRST, _MOST = 4, 64  # images in a trial


@dataclass(frozen=True)
class Speed:
    """Seconds a unit of cost takes: one image forwarded, a backward pass taken as two.

    Without a measurement a unit counts as 1 in every kind of work.

    Attributes:
        forward: Of asking.
        gradient: Of differentiating with respect to images, as attacks do.
        training: Of differentiating with respect to weights.
        in_seconds: Whether it was measured.
    """

    forward: float = 1.0
    gradient: float = 1.0
    training: float = 1.0
    in_seconds: bool = False


def measure_speed(classifier: nn.Module, images: Tensor, compute: Compute) -> Speed:
    """Try each kind of work on a few images, for a fraction of a second where the model is small.

    The classifier is left as it is, and no random draw of the run is shifted.

    Args:
        classifier: Maps images (n, C, H, W) to logits (n, K); eval mode, no gradients.
        images: (N, C, H, W), some of which are used.
        compute: Device and precision.
    """
    images = images[:_MOST].to(compute.device)
    student = copy.deepcopy(classifier).requires_grad_(True)

    def forward(part: Tensor) -> None:
        with torch.no_grad():
            classifier(part)

    def gradient(part: Tensor) -> None:
        delta = torch.zeros_like(part[:1], requires_grad=True)
        classifier(part + delta).float().square().mean().backward()

    def training(part: Tensor) -> None:
        student(part).float().square().mean().backward()
        student.zero_grad(set_to_none=True)

    with (
        torch.random.fork_rng(devices=_devices(compute)),
        torch.autocast(
            compute.device.type, dtype=torch.bfloat16, enabled=compute.autocast == "bf16"
        ),
    ):
        return Speed(
            forward=_seconds(forward, images, compute),
            gradient=_seconds(gradient, images, compute) / 3.0,
            training=_seconds(training, images, compute) / 3.0,
            in_seconds=True,
        )


def speed_on(subjects: Sequence[Subject], images: Tensor, compute: Compute) -> Speed:
    """Measure this machine's speed on the first model that can be looked into.

    Where there is none, a unit counts as 1.
    """
    for subject in subjects:
        if subject.model is not None:
            return measure_speed(subject.white.classifier, images, compute)
    return Speed()


def _seconds(work: Callable[[Tensor], None], images: Tensor, compute: Compute) -> float:
    """Return the seconds an image takes, on as many images as are needed to tell."""
    n = min(_FIRST, len(images))
    work(images[:n])  # the first time is slower
    while True:
        started = time.perf_counter()
        work(images[:n])
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        passed = time.perf_counter() - started
        if passed >= _LEAST_S or n >= min(_MOST, len(images)):
            return passed / n
        n = min(4 * n, len(images))


def _devices(compute: Compute) -> list[torch.device]:
    return [compute.device] if compute.device.type == "cuda" else []
