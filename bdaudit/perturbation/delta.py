"""Putting a universal perturbation on images, and drawing one at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bdaudit.detection import framed
from bdaudit.perturbation.balls import Ball

__all__ = ["apply_delta", "random_delta"]


def apply_delta(images: Tensor, delta: Tensor) -> Tensor:
    """Return clamp(images + delta, 0, 1), the images a classifier is shown.

    Args:
        images: (N, C, H, W) in [0, 1], the trigger already on them where there is one.
        delta: (1, C, H, W) in pixel units, on the images' device. On marked images it is laid over
            the box that each asks about (`bdaudit.detection.framed`).

    A pixel that leaves [0, 1] has zero derivative with respect to delta: that is exact, since a
    larger change there would not be seen.
    """
    return (images + framed(delta, images)).clamp(0.0, 1.0)


def random_delta(
    shape: Sequence[int], ball: Ball, generator: torch.Generator, *, surface: bool = True
) -> Tensor:
    """Draw the perturbation of the noise control.

    Args:
        shape: (C, H, W) of one image.
        ball: The ball an attack had to stay in.
        generator: A seeded CPU generator.
        surface: Give it norm eps, as optimised perturbations have nearly always, rather than a
            point from inside the ball.

    Returns:
        (1, C, H, W) float32 on the CPU. Its norm never exceeds eps.
    """
    draw = ball.random_surface_point if surface else ball.random_point
    return draw((1, *shape), generator)
