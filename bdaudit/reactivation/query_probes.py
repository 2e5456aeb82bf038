"""Antithetic probes: the gradient of a model that can only be queried.

One probe is one craft image, shown twice: with delta + u and with delta - u, u a random direction
of length about eps. The difference of the two losses times u is, in the mean over images and
directions, the gradient of the mean loss smoothed over the ball (Spall 1992; antithetic evolution
strategies, Salimans et al. 2017).

A universal perturbation has one gradient and many images, and this is what makes it cheap: *every
probe has an image of its own*. With Q questions shared out among probes of b images each, the
variance of the estimate is proportional to b M + S - M, where M is the squared norm of the mean
gradient and S the mean of the images' squared norms: b = 1 is best, whatever they are. Judging a
candidate on the whole craft batch, as the universal Square search does, is the other end of that
scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdaudit.perturbation import Ball, apply_delta
from bdaudit.reactivation.objective import CraftSet
from bdaudit.reactivation.query_search import failures, success_flags

__all__ = ["ProbeSearch", "probe_directions"]

_LEAST_STEPS = 40
_COARSE_SHARE = 0.5
_START_Z = 2.0
_START_QUERIES = 20_000
_COARSE = 2  # pixels, the side of the squares of a coarse direction


class ProbeSearch:
    """Dual averaging on antithetic probes.

    Every estimate ever made is kept in one weighted sum, later ones weighing more, and delta goes
    against it: fully where a pixel's sum stands clear of its noise, in proportion where it does
    not. Single estimates are nearly all noise; their sum is not, and unlike a series of steps it
    forgets nothing (Nesterov, "Primal-dual subgradient methods", 2009).

    A start that is not zero is a belief about the gradient, held before the first estimate: worth
    `_START_Z` standard errors a pixel after `_START_QUERIES` images, and the more before that the
    larger a standard error still is. It may not fade further: signs that a student found turned
    out to be better than those of estimates from several times as many images.

    Args:
        craft: Images and targets, on the CPU.
        ball: Where delta is kept.
        start: (1, C, H, W), delta before the first estimate.
        budget: Images this part may ask about.
        batch_size: Most images a question.
        scale: Length of a probe in units of eps.
    """

    name = "antithetic probes"

    def __init__(
        self,
        craft: CraftSet,
        ball: Ball,
        start: Tensor,
        *,
        budget: int,
        batch_size: int,
        scale: float,
    ) -> None:
        self._craft = craft
        self._ball = ball
        # What a direction of +-1 is multiplied by to be `scale` times as long as the ball is wide.
        self._length = scale * ball.eps / float(ball.norm(torch.ones_like(start)))
        self._n_pairs = max(1, min(batch_size // 2, len(craft), budget // (2 * _LEAST_STEPS)))
        size = float(start.double().square().mean().sqrt())
        self._belief = start / size if size > 0 else start  # 1 a pixel in root mean square
        self._delta = start
        self._sum = torch.zeros_like(start, dtype=torch.float64)
        self._noise = 0.0  # variance of a pixel of the sum
        self._n_steps = 0
        self._n_images = 0
        self._asked: tuple[Tensor, Tensor] | None = None

    @property
    def delta(self) -> Tensor:
        """The point of the ball that the estimates so far point to."""
        return self._delta

    @property
    def tried_and_accepted(self) -> tuple[int, int]:
        """Steps taken; none is ever refused."""
        return self._n_steps, self._n_steps

    def propose(self, limit: int, generator: torch.Generator) -> Tensor:
        """Show random craft images with delta + u, then the same with delta - u."""
        n_pairs = min(self._n_pairs, limit // 2)
        indices = torch.randperm(len(self._craft), generator=generator)[:n_pairs]
        probes = probe_directions(
            n_pairs, round(_COARSE_SHARE * n_pairs), self._delta.shape[1:], generator
        )
        self._asked = indices, probes
        images = self._craft.images[indices]
        shift = self._length * probes
        up, down = (self._ball.possible(self._delta + sign * shift) for sign in (1, -1))
        return torch.cat((apply_delta(images, up), apply_delta(images, down)))

    def absorb(self, answers: Tensor) -> float:
        """Add one estimate to the sum and move delta."""
        assert self._asked is not None
        indices, probes = self._asked
        targets = self._craft.targets[indices].repeat(2)
        up, down = failures(answers, targets).chunk(2)
        differences = (up - down).view(-1, 1, 1, 1)
        self._n_steps += 1
        self._n_images += len(answers)
        self._sum += self._n_steps * (differences * probes).mean(0, keepdim=True)
        self._noise += self._n_steps**2 * float(differences.square().mean()) / len(differences)
        if self._noise > 0:
            evidence = self._sum / self._noise**0.5
            weight = _START_Z * max(1.0, _START_QUERIES / self._n_images) ** 0.5
            towards = self._ball.eps * (weight * self._belief - evidence)
            self._delta = self._ball.project(towards.float())
        return float(success_flags(answers, targets).double().mean())

    def memory(self) -> dict[str, Tensor]:
        """Return delta, the sum of estimates and what is known of its noise."""
        return {
            "delta": self._delta,
            "sum": self._sum.clone(),
            "noise": torch.tensor(self._noise, dtype=torch.float64),
            "n_steps": torch.tensor(self._n_steps),
            "n_images": torch.tensor(self._n_images),
        }

    def recall(self, memory: Mapping[str, Tensor]) -> None:
        """Go back to where `memory` was taken."""
        self._delta = memory["delta"]
        self._sum = memory["sum"].clone()
        self._noise = float(memory["noise"])
        self._n_steps = int(memory["n_steps"])
        self._n_images = int(memory["n_images"])


def probe_directions(
    n: int, n_coarse: int, shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Draw directions whose values are -1 or +1: first coarse ones, then one sign a pixel.

    A gradient with respect to an image is not white: neighbouring pixels pull alike. Coarse
    directions, constant on squares of two pixels, have a quarter of the values to find out and
    most of what is to be gained; what only single pixels can gain is left to the others.

    Args:
        n: Directions wanted.
        n_coarse: How many of them are coarse.
        shape: (C, H, W).
        generator: A seeded CPU generator.

    Returns:
        (n, C, H, W) float32.
    """
    channels, height, width = shape
    squares = (n_coarse, channels, -(-height // _COARSE), -(-width // _COARSE))
    coarse = _spread(_signs(squares, generator), height, width)
    return torch.cat((coarse, _signs((n - n_coarse, *shape), generator)))


def _spread(squares: Tensor, height: int, width: int) -> Tensor:
    """Give every pixel its square's value: (n, C, h, w) to (n, C, height, width)."""
    pixels = squares.repeat_interleave(_COARSE, 2).repeat_interleave(_COARSE, 3)
    return pixels[:, :, :height, :width]


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, shape, generator=generator) - 1).float()
