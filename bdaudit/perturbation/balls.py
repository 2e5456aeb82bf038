"""Norm balls around zero: the set a universal perturbation is kept in.

Perturbations are in pixel units on [0, 1] images. The L2 norm is that of the whole (C, H, W)
perturbation, not a mean over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from bdaudit.errors import ConfigError

__all__ = ["Ball", "L2Ball", "LinfBall", "Norm", "make_ball"]

Norm = Literal["linf", "l2"]


class Ball(Protocol):
    """All perturbations no longer than `eps` in one norm."""

    @property
    def eps(self) -> float:
        """Radius in pixel units, at least 0."""

    def norm(self, delta: Tensor) -> Tensor:
        """Return the length of `delta`, a tensor of no dimensions, on its device."""

    def project(self, delta: Tensor) -> Tensor:
        """Return the nearest point of the ball (in L2) to `delta`."""

    def ascent(self, gradient: Tensor) -> Tensor:
        """Return the direction of norm 1 along which `gradient` rises most; 0 where it is 0."""

    def random_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a point uniformly from the ball: float32, on the CPU."""

    def random_surface_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a point of norm `eps` (to rounding): float32, on the CPU."""


@dataclass(frozen=True, slots=True)
class LinfBall:
    """No pixel value changes by more than `eps`.

    Raises:
        ConfigError: `eps` is negative or not finite.
    """

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        """Return the largest absolute value."""
        return delta.abs().amax()

    def project(self, delta: Tensor) -> Tensor:
        """Clip every value to [-eps, eps]."""
        limit = _float32_below(self.eps)
        return delta.clamp(-limit, limit)

    def ascent(self, gradient: Tensor) -> Tensor:
        """Return the sign of every value."""
        return gradient.sign()

    def random_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw every value uniformly from [-eps, eps]."""
        return self.project((2 * torch.rand(*shape, generator=generator) - 1) * self.eps)

    def random_surface_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a corner: every value -eps or +eps with equal chance."""
        signs = 2 * torch.randint(2, tuple(shape), generator=generator) - 1
        return self.project(signs.float() * self.eps)


@dataclass(frozen=True, slots=True)
class L2Ball:
    """The change as a whole is no longer than `eps`.

    Raises:
        ConfigError: `eps` is negative or not finite.
    """

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        """Return the root of the sum of squares."""
        length: Tensor = torch.linalg.vector_norm(delta)
        return length

    def project(self, delta: Tensor) -> Tensor:
        """Shorten `delta` to length `eps` where it is longer."""
        length = self.norm(delta)
        # float32 lengths are off by a few parts in ten million. What may be outside is brought a
        # hair's breadth inside, and what was brought there is not touched again.
        may_be_outside = length > self.eps * (1 - _HAIR)
        return torch.where(may_be_outside, delta * (self.eps * (1 - 2 * _HAIR) / length), delta)

    def ascent(self, gradient: Tensor) -> Tensor:
        """Return the gradient scaled to length 1."""
        # Scaling by the largest value first keeps tiny gradients from underflowing when squared.
        peak = gradient.abs().amax()
        scaled = torch.where(peak > 0, gradient / peak, torch.zeros_like(gradient))
        return torch.where(peak > 0, scaled / self.norm(scaled), scaled)

    def random_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a direction uniformly and a length so that volume is covered evenly."""
        surface = self.random_surface_point(shape, generator)
        share = torch.rand((), generator=generator) ** (1 / surface.numel())
        return self.project(surface * share)

    def random_surface_point(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw a direction uniformly and go to the surface."""
        return self.project(self.ascent(torch.randn(*shape, generator=generator)) * self.eps)


_HAIR = 5e-6
_BALLS: dict[str, type[LinfBall] | type[L2Ball]] = {"linf": LinfBall, "l2": L2Ball}


def make_ball(norm: str, eps: float) -> Ball:
    """Return the ball of radius `eps` in the norm called `norm`.

    Raises:
        ConfigError: No such norm, or a radius that is negative or not finite.
    """
    if norm not in _BALLS:
        raise ConfigError(f"norm: expected one of {', '.join(get_args(Norm))}, got {norm!r}")
    return _BALLS[norm](eps)


def _float32_below(eps: float) -> float:
    """Return the largest float32 not above `eps`; 0.05 itself would be stored a little larger."""
    nearest = np.float32(eps)
    return float(nearest if float(nearest) <= eps else np.nextafter(nearest, np.float32(0)))


def _check_radius(eps: float) -> None:
    if not (isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps: expected a finite number of at least 0 in pixel units, got {eps}")
