"""Neural Cleanse: the smallest mask and pattern toward each target, for many targets at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Progress, Steps
from bdaudit.inversion.arms import Arm, draw_batches
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.recovered import Recovered
from bdaudit.perturbation import cross_entropy, margin
from bdaudit.triggers import Patch

__all__ = ["NeuralCleanseConfig", "NeuralCleanseSearch"]

_N_JUDGED = 96  # images over which a mask made in full has to win
_MAY_LOSE = 0.05  # of its success, for being opaque
_TOUCHED = 0.1  # opacity from which a pixel belongs to the recovered patch


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuralCleanseConfig:
    """Settings of the search for masks.

    Attributes:
        n_steps: Adam steps in one stage of the race.
        n_stages: Stages.
        n_images: Images in the mini-batch of one step of one arm.
        learning_rate: Of Adam on the logits of mask and pattern.
        success: Share of images a mask has to win before it may shrink.
        success_any_other: The same of a mask that takes images to any other class. A backdoor
            that moves every class to another one is only as sure as the model is of the class.
        first_cost: Weight of the mask's size (in shares of the image) at the start.
        cost_factor: By which the weight rises when enough was won, and its power 1.5 by which it
            falls when not.
        patience: Steps between two changes of the weight.

    Raises:
        ConfigError: A setting is out of range.
    """

    n_steps: int = 20
    n_stages: int = 5
    n_images: int = 16
    learning_rate: float = 0.3
    success: float = 0.95
    success_any_other: float = 0.60
    first_cost: float = 4.0
    cost_factor: float = 1.5
    patience: int = 2

    def __post_init__(self) -> None:
        if min(self.n_steps, self.n_stages, self.n_images, self.patience) < 1:
            raise ConfigError("neural cleanse: counts must be 1 or more")
        for share in (self.success, self.success_any_other):
            if not 0 < share <= 1:
                raise ConfigError(f"neural cleanse: success in (0, 1], got {share}")
        if min(self.learning_rate, self.first_cost) <= 0 or self.cost_factor <= 1:
            raise ConfigError("neural cleanse: rate and cost above 0, cost factor above 1")


class NeuralCleanseSearch:
    """Optimises masks and patterns with Adam, the weight of the mask's size steered by success.

    The size of an arm is log2 of the pixels of its mask (the sum of its values), the smallest at
    which it won enough over `patience` steps; of an arm that never did, the whole image and more.

    Source: Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
    Networks", S&P 2019, section IV. docs/inversion-evidence.md lists the defaults of the authors'
    code and where we differ.
    """

    method = "neural-cleanse"
    title = "smallest masks (Neural Cleanse)"
    unit = "pixels"
    first_drop = 1

    def __init__(self, asker: Asker, arms: Sequence[Arm], config: NeuralCleanseConfig) -> None:
        self.asker = asker
        self.arms = arms
        self.config = config
        self.n_stages = config.n_stages
        channels, height, width = asker.images.shape[1:]
        device, n = asker.images.device, len(arms)
        self.pixels = height * width
        # Mask and pattern as logits: the sigmoid keeps them in [0, 1].
        self.state = [
            torch.full((n, 1, height, width), -1.0, device=device),
            torch.zeros((n, channels, height, width), device=device),
        ]
        self.momentum = [torch.zeros_like(s) for s in self.state]
        self.square = [torch.zeros_like(s) for s in self.state]
        self.count = torch.zeros(n, device=device)
        self.cost = torch.full((n,), config.first_cost, device=device)
        self.best = [s.clone() for s in self.state]
        self.best_size = torch.full((n,), float(self.pixels))
        self.missed = torch.ones(n)
        self.enough = torch.tensor(
            [config.success if arm.rule else config.success_any_other for arm in arms],
            device=device,
        )

    def advance(self, stage: int, active: Sequence[int], generator: torch.Generator) -> None:
        """Take `n_steps` steps with the active arms."""
        arms = [self.arms[k] for k in active]
        batches = draw_batches(arms, self.config.n_images, self.config.n_steps, generator)
        self._descend(torch.tensor(list(active)), batches)

    def _descend(
        self,
        pick: Tensor,
        batches: Sequence[tuple[Tensor, Tensor]],
        judged: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Go through the mini-batches; success is counted on the way, or on images of its own."""
        recent: list[Tensor] = []
        for indices, targets in batches:
            before = tuple(s[pick] for s in self.state)
            gradients, won = self.asker.gradients(before, stamp, indices, targets, cross_entropy)
            recent.append(won)
            if len(recent) == self.config.patience:
                if judged is not None:
                    recent = [self.asker.success(before, stamp, *judged)[0]]
                self._steer(pick, before, torch.stack(recent).mean(0))
                recent = []
            self._step(pick, gradients)

    def _steer(self, pick: Tensor, before: tuple[Tensor, ...], won: Tensor) -> None:
        """Remember masks that win enough, and change the weight of size."""
        enough = won >= self.enough[pick]
        sizes = before[0].sigmoid().sum((1, 2, 3)).cpu()
        self.missed[pick] = 1 - won.cpu()
        better = enough.cpu() & (sizes < self.best_size[pick])
        for kept, now in zip(self.best, before, strict=True):
            kept[pick[better]] = now[better]
        self.best_size[pick[better]] = sizes[better]
        factor = self.config.cost_factor
        self.cost[pick] *= torch.where(enough, factor, factor**-1.5)

    def _step(self, pick: Tensor, gradients: tuple[Tensor, ...]) -> None:
        """One step of Adam for each arm, with that arm's own count of steps."""
        self.count[pick] += 1
        count = self.count[pick][:, None, None, None]
        mask = self.state[0][pick].sigmoid()
        weight = (self.cost[pick] / self.pixels)[:, None, None, None]
        with_cost = (gradients[0] + weight * mask * (1 - mask), gradients[1])
        for state, first, second, gradient in zip(
            self.state, self.momentum, self.square, with_cost, strict=True
        ):
            # Betas of .5 and .9, as in the authors' code: the objective changes under way.
            first[pick] = 0.5 * first[pick] + 0.5 * gradient
            second[pick] = 0.9 * second[pick] + 0.1 * gradient**2
            mean, spread = first[pick] / (1 - 0.5**count), second[pick] / (1 - 0.9**count)
            state[pick] -= self.config.learning_rate * mean / (spread.sqrt() + 1e-8)

    def sizes(self, stage: int) -> Tensor:
        """Return log2 of the pixels each arm's mask needs (n,)."""
        return self.best_size.log2()

    def standings(self, stage: int) -> Tensor:
        """Return the same, arms whose masks never won enough told apart by what they win."""
        waiting = self.best_size >= self.pixels
        return self.best_size.log2() + torch.where(waiting, self.missed, 0.0)

    def recover(
        self,
        arm: int,
        others: Sequence[NeuralCleanseSearch],
        *,
        n_passes: int,
        seed: int,
    ) -> Steps[Recovered]:
        """Go on with one arm on the original alone, success counted over more images at a time.

        The smallest mask only just wakes the original. A defended model in which the backdoor
        sleeps may need more, and a trigger that is too weak would make it look removed. So the
        pixels that the smallest mask touches are made opaque, and the pattern on them is driven
        on, toward the largest margin of the target on the original.

        Innocent models are not asked for masks of their own: every model has one that wins enough,
        and it is its size that differs.

        Args:
            arm: Which.
            others: The searches on the innocent models.
            n_passes: Passes over the arm's craft images.
            seed: Of the mini-batches.
        """
        yield Progress(self.title, 0, 1)
        n_images = min(self.config.n_images, len(self.arms[arm]))
        n_steps = n_passes * -(-len(self.arms[arm]) // n_images)
        generator = torch.Generator().manual_seed(seed)
        # The smallest mask of the race won on few images; what is kept now must win on most.
        self.best_size[arm] = float(self.pixels)
        batches = draw_batches([self.arms[arm]], n_images, n_steps, generator)
        (judged,) = draw_batches([self.arms[arm]], _N_JUDGED, 1, generator)
        self._descend(torch.tensor([arm]), batches, judged)
        mask = self.best[0][arm].sigmoid()
        soft = (mask, self.best[1][arm].sigmoid())
        opaque = (mask >= _TOUCHED).float()
        strong = (opaque, self._strengthened(arm, opaque, batches[: n_steps // 2]))
        # A mask that is faint everywhere, as of a trigger over the image, has no opaque pixels.
        chosen = strong
        if self._wins(strong, judged) < self._wins(soft, judged) - _MAY_LOSE:
            chosen = soft
        return Recovered(
            arm=arm,
            transform=Patch(image=chosen[1].cpu(), mask=chosen[0].cpu(), corner="top-left"),
            own=None,
            size=float(mask.sum()),
        )

    def _wins(self, patch: tuple[Tensor, Tensor], judged: tuple[Tensor, Tensor]) -> float:
        """Return the share of the judged images that a mask and its pattern take to the target."""
        parameters = tuple(part[None] for part in patch)
        return float(self.asker.success(parameters, stamp_as_is, *judged)[0])

    def _strengthened(
        self, arm: int, opaque: Tensor, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return the pattern (C, H, W) that drives the target's margin up through opaque pixels."""

        def stamp_opaque(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
            return images * (1 - opaque) + parameters[0].sigmoid()[:, None] * opaque

        logits = self.best[1][arm : arm + 1].clone()
        optimizer = torch.optim.Adam([logits], lr=self.config.learning_rate)
        for indices, targets in batches:
            (logits.grad,), _ = self.asker.gradients(
                (logits,), stamp_opaque, indices, targets, margin
            )
            optimizer.step()
        return logits[0].sigmoid()


def stamp_as_is(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
    """Do the same with masks and patterns that are values, not logits."""
    mask, pattern = (p[:, None] for p in parameters)
    return images * (1 - mask) + pattern * mask


def stamp(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
    """Blend each arm's pattern into its images by its mask; (k, n, C, H, W)."""
    mask, pattern = (p.sigmoid()[:, None] for p in parameters)
    return images * (1 - mask) + pattern * mask
