"""Norm balls around zero: the set a universal perturbation is kept in.

Perturbations are in pixel units on [0, 1] images. The L2 norm is that of the whole (C, H, W)
perturbation, not a mean over pixels.

Of a table, whose rows are images of 1 x F, a column may take some values only: then a perturbation
moves it by whole steps or not at all, so that every row that is shown to a model could be one. That
is for the L-inf ball, whose columns do not depend on one another. For the L2 ball it is refused:
there a descent that rounds after every step can stay at zero, whatever a larger change would do.

Of marked images (`bdaudit.detection`) the last channel says which box is asked about, and no
perturbation moves it. That is for the L-inf ball too: the pattern is stretched with the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from bdaudit.detection import off_mark
from bdaudit.errors import ConfigError

__all__ = ["Ball", "L2Ball", "LinfBall", "Norm", "can_move", "make_ball"]

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

    def possible(self, delta: Tensor) -> Tensor:
        """Return `delta` with every column moved by what it can be moved by, longer or not."""


@dataclass(frozen=True, slots=True)
class LinfBall:
    """No pixel value changes by more than `eps`.

    Attributes:
        eps: Radius.
        steps: For each column of a table what it moves by: 0 by any amount, infinity by none; empty
            for images.
        marked: Whether images are marked, so that their last channel stays as it is.

    Raises:
        ConfigError: `eps` is negative or not finite, or no column can move so little.
    """

    eps: float
    steps: tuple[float, ...] = ()
    marked: bool = False

    def __post_init__(self) -> None:
        _check_radius(self.eps)
        _check_steps(self.steps, self.eps)

    def norm(self, delta: Tensor) -> Tensor:
        """Return the largest absolute value."""
        return delta.abs().amax()

    def project(self, delta: Tensor) -> Tensor:
        """Clip every value to [-eps, eps], and round those that move by steps."""
        limit = _float32_below(self.eps)
        clipped = (off_mark(delta) if self.marked else delta).clamp(-limit, limit)
        if not self.steps:
            return clipped
        steps, least = _steps_of(self.steps, delta)
        most = (self.eps / steps + _ON_STEP).floor()
        whole = (clipped / steps).round().clamp(-most, most) * least
        return torch.where(steps > 0, whole, clipped)

    def possible(self, delta: Tensor) -> Tensor:
        """Round the columns that move by steps; leave the mark alone."""
        if not self.steps:
            return off_mark(delta) if self.marked else delta
        steps, least = _steps_of(self.steps, delta)
        return torch.where(steps > 0, (delta / steps).round() * least, delta)

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

    Attributes:
        eps: Radius.

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

    def possible(self, delta: Tensor) -> Tensor:
        """Return it as it is: there are no steps."""
        return delta

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
_ON_STEP = 1e-4
"""Of a step: what is nearer to a whole number of them is one."""


def make_ball(
    norm: str, eps: float, steps: tuple[float, ...] = (), *, marked: bool = False
) -> Ball:
    """Return the ball of radius `eps` in the norm called `norm`.

    Args:
        norm: "linf" or "l2".
        eps: Radius.
        steps: What the columns of a table move by, as of `LinfBall`; empty for images.
        marked: Whether images are marked, so that their last channel stays as it is.

    Raises:
        ConfigError: No such norm, a radius that is negative or not finite, or one at which no
            column can move; or the norm is L2 and a column moves by steps or not at all, or images
            are marked.
    """
    if norm not in get_args(Norm):
        raise ConfigError(f"norm: expected one of {', '.join(get_args(Norm))}, got {norm!r}")
    if norm == "linf":
        return LinfBall(eps, steps, marked)
    if any(step > 0 for step in steps):
        raise ConfigError(
            "norm: expected linf for a table with integer or one-hot columns, got l2, by which a "
            "search can stay where it starts since no single step of it is as long as that of a "
            "column; use --norm linf"
        )
    if marked:
        raise ConfigError(
            "norm: expected linf for detectors, got l2: a perturbation is laid over the box that "
            "is asked about, and how long it then is hangs on the size of the box"
        )
    return L2Ball(eps)


def can_move(steps: tuple[float, ...], eps: float) -> tuple[bool, ...]:
    """Say of each column of a table, given by its step, whether it can change by up to `eps`."""
    return tuple(step <= eps * (1 + _ON_STEP) for step in steps)


def _steps_of(steps: tuple[float, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps (F), and the same with 0 where a column never moves."""
    values = torch.tensor(steps, dtype=like.dtype, device=like.device)
    return values, torch.where(values.isinf(), 0.0, values)


def _check_steps(steps: tuple[float, ...], eps: float) -> None:
    if steps and eps > 0 and not any(can_move(steps, eps)):
        raise ConfigError(
            f"eps: at {eps:g} no column of the table can change: the smallest step on the scale of "
            f"the model is {min(steps):g}; try radii from there on"
        )


def _float32_below(eps: float) -> float:
    """Return the largest float32 not above `eps`; 0.05 itself would be stored a little larger."""
    nearest = np.float32(eps)
    return float(nearest if float(nearest) <= eps else np.nextafter(nearest, np.float32(0)))


def _check_radius(eps: float) -> None:
    if not (isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps: expected a finite number of at least 0 in pixel units, got {eps}")
