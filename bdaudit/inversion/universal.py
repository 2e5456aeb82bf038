"""The smallest universal perturbation toward each target, for many targets at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.arms import Arm, draw_batches
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.recovered import Recovered
from bdaudit.perturbation import margin, smoothed_failure
from bdaudit.triggers import Additive, Transform

__all__ = ["UniversalConfig", "UniversalSearch"]

_DONE = 0.9  # an arm that wins this share of the images climbs no further


@dataclass(frozen=True, slots=True, kw_only=True)
class UniversalConfig:
    """Settings of the climb.

    Attributes:
        ladder: Radii (L-inf; pixel values, or pixels where the change is a warp) in rising order,
            each the same factor above the last.
        n_steps: Steps an arm takes at each radius.
        n_images: Images in the mini-batch of one step.
        n_scored: Craft images on which the success at a radius is counted.

    Raises:
        ConfigError: A setting is out of range.
    """

    ladder: tuple[float, ...] = tuple(2 ** (k / 2) / 180 for k in range(9))  # .0056 to .089
    n_steps: int = 3
    n_images: int = 32
    n_scored: int = 96

    def __post_init__(self) -> None:
        if min(self.n_steps, self.n_images, self.n_scored) < 1:
            raise ConfigError("universal inversion: counts must be 1 or more")
        if len(self.ladder) < 2 or any(
            not 0 < low < high for low, high in zip(self.ladder, self.ladder[1:], strict=False)
        ):
            raise ConfigError(f"universal inversion: radii must rise from above 0: {self.ladder}")


class UniversalSearch:
    """Climbs a ladder of radii with one change of all images an arm, a stage of the race each.

    The change is a delta added to every image. `WarpSearch` climbs the same way with another.
    At every radius it takes a few sign steps that shrink, from where the smaller radius
    left it. The size of an arm is the mean over images of log2 of the radius at which the image
    was taken to its target (those never taken count as one rung above the last): the area over the
    curve of success against log radius, which uses every rung and not just one threshold.

    Source: universal perturbations, Moosavi-Dezfooli et al., CVPR 2017; that backdoored classes
    need conspicuously small ones is the premise of Neural Cleanse (Wang et al., S&P 2019), which
    bounds the mask where we bound the change of every pixel, so that triggers over the whole image
    are reached. The ladder is ours.
    """

    method = "universal"
    title = "smallest universal perturbations"
    unit = "L-inf radius"
    first_drop = 2

    def __init__(self, asker: Asker, arms: Sequence[Arm], config: UniversalConfig) -> None:
        self.asker = asker
        self.arms = arms
        self.config = config
        self.n_stages = len(config.ladder)
        self.deltas = torch.zeros((len(arms), *self._shape()), device=asker.images.device)
        self.success = torch.full((self.n_stages, len(arms)), float("nan"))
        self.near = torch.zeros(len(arms))

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of one arm's change."""
        return tuple(self.asker.images.shape[1:])

    def _stamp(self, parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
        """Change the images (k, n, C, H, W) of each arm."""
        return add(parameters, images)

    def _transform(self, delta: Tensor) -> Transform:
        """Return one arm's change as a trigger's."""
        return Additive(delta=delta)

    def advance(self, stage: int, active: Sequence[int], generator: torch.Generator) -> None:
        """Take the active arms to the radius of `stage`, and count what they win there."""
        eps = self.config.ladder[stage]
        if stage:
            self.success[stage] = self.success[stage - 1].where(
                self.success[stage - 1] >= _DONE, torch.tensor(float("nan"))
            )
        climbing = [k for k in active if not self.success[stage][k] >= _DONE]
        if not climbing:
            return
        arms = [self.arms[k] for k in climbing]
        deltas = self.deltas[climbing]
        n_steps = self.config.n_steps
        batches = draw_batches(arms, self.config.n_images, n_steps, generator)
        for number, (indices, targets) in enumerate(batches):
            (gradient,), _ = self.asker.gradients(
                (deltas,), self._stamp, indices, targets, smoothed_failure
            )
            length = eps * (1 - number / (n_steps + 1))
            deltas = (deltas - length * gradient.sign()).clamp(-eps, eps)
        self.deltas[climbing] = deltas
        ((indices, targets),) = draw_batches(arms, self.config.n_scored, 1, generator)
        won, near = self.asker.success((deltas,), self._stamp, indices, targets)
        self.success[stage, climbing] = won.cpu()
        self.near[climbing] = near.cpu()

    def sizes(self, stage: int) -> Tensor:
        """Return log2 of each arm's size (n,) after `stage`; NaN where it was dropped before."""
        ladder = self.config.ladder
        rung = log2(ladder[1] / ladder[0])
        best = self.success[: stage + 1].cummax(0).values
        return log2(ladder[0]) + rung * (1 - best).sum(0)

    def standings(self, stage: int) -> Tensor:
        """Return the same, less how near the images are to their targets, in rungs."""
        ladder = self.config.ladder
        return self.sizes(stage) - log2(ladder[1] / ladder[0]) * self.near

    def recover(
        self,
        arm: int,
        others: Sequence[UniversalSearch],
        *,
        n_passes: int,
        seed: int,
    ) -> Steps[Recovered]:
        """Make the trigger of one arm in full, at the radius where the original stands out most.

        Any model can be pushed by a large delta, so the radius is the one at which the original
        exceeds the innocent models' best by most (the smallest of equals); without innocent models
        the first at which half of the images were won.

        Args:
            arm: Which.
            others: The searches on the innocent models, whose own deltas are made likewise.
            n_passes: Passes over the arm's craft images.
            seed: All models meet the same random draws.
        """
        stage = self._telling_stage(arm, others)
        eps = self.config.ladder[stage]
        transforms = []
        for number, search in enumerate((self, *others)):
            yield Progress(self.title, number, 1 + len(others))
            delta = search.deltas[arm : arm + 1].clamp(-eps, eps)
            generator = torch.Generator().manual_seed(seed)
            found = search.descend(arm, delta, eps, n_passes, generator)
            transforms.append(self._transform(found))
        return Recovered(arm=arm, transform=transforms[0], own=tuple(transforms[1:]), size=eps)

    def descend(
        self, arm: int, delta: Tensor, eps: float, n_passes: int, generator: torch.Generator
    ) -> Tensor:
        """Drive images to the target within one radius; return delta (C, H, W).

        First the share not yet won is lowered, then the mean margin raised: a delta that only just
        wakes the original may be too weak to wake what sleeps in a defended model.
        """
        n_images = min(self.config.n_images, len(self.arms[arm]))
        n_steps = n_passes * -(-len(self.arms[arm]) // n_images)
        batches = draw_batches([self.arms[arm]], n_images, n_steps, generator)
        for number, (indices, targets) in enumerate(batches):
            loss = smoothed_failure if 2 * number < n_steps else margin
            (gradient,), _ = self.asker.gradients((delta,), self._stamp, indices, targets, loss)
            length = eps * (1 - number / n_steps)
            delta = (delta - length * gradient.sign()).clamp(-eps, eps)
        return delta[0].cpu()

    def _telling_stage(self, arm: int, others: Sequence[UniversalSearch]) -> int:
        own = self.success[:, arm].cummax(0).values
        if others:
            innocent = torch.stack([s.success[:, arm].cummax(0).values for s in others])
            return int((own - innocent.amax(0)).argmax())
        return int((own >= 0.5).int().argmax()) if bool((own >= 0.5).any()) else self.n_stages - 1


def add(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
    """Put each arm's delta (k, C, H, W) on its images (k, n, C, H, W).

    The gradient goes through the clamping as if there were none: a pixel that is black in every
    image has no derivative there (on the bound and beyond it is 0), and would stay as it is for
    ever although a brighter one would be seen.
    """
    (deltas,) = parameters
    shifted = images + deltas[:, None]
    return shifted + (shifted.clamp(0.0, 1.0) - shifted).detach()
