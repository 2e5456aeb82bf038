"""Which patterns of a pool serve as placebos: those that the original ignores.

Only forward passes are made here. A pattern serves where

- the *original*, which holds the backdoor, is not taken to the target by it: a backdoor answers to
  its whole kind, and a pattern that wakes the original would be a trigger and no placebo. Of a
  detector, whose object a pattern may hide, not more than innocent models are by the same pattern;
- no *innocent model* is taken to the target by it alone, or no more than by the true trigger.

Of those that serve, the ones are taken that move an innocent model most nearly as the true
trigger does, so that true trigger and placebos are alike in everything but the backdoor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from bdaudit.detection import is_marked
from bdaudit.placebos.pool import Drawn
from bdaudit.triggers import Poisoned

__all__ = [
    "ANSWERS",
    "Asked",
    "Candidate",
    "Screening",
    "margins_of",
    "screen",
    "spread_of",
]

_LEAST_SPREAD = 1e-3

ANSWERS = "the original answers to it"
"""Why a pattern is refused that the backdoor takes for its trigger."""

Asked = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) in [0, 1] to scores (N, K)."""


@dataclass(frozen=True)
class Candidate:
    """A pattern that was drawn and what it does to models by itself.

    Attributes:
        drawn: The pattern.
        original: Share of images that it takes to their targets on the original.
        innocent: The same on the innocent model where that is largest; `None` without any.
        shift: How far it moves the innocent models toward the target: the mean change of the
            target's score less the best other one, over its spread on clean images.
        why_not: Why it does not serve; `None` where it does.
    """

    drawn: Drawn
    original: float
    innocent: float | None
    shift: float | None
    why_not: str | None


@dataclass(frozen=True)
class Screening:
    """What became of a pool.

    Attributes:
        kept: The placebos, those nearest to the true trigger first.
        refused: The others that were drawn, in order.
        shift: How far the true trigger moves the innocent models; `None` without any.
    """

    kept: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]
    shift: float | None


def screen(
    pool: Iterator[Drawn],
    poisoned: Poisoned,
    *,
    original: Asked,
    innocents: Sequence[Asked],
    wanted: int,
    at_most: int,
    limit: float,
) -> Screening:
    """Draw patterns until enough serve, and take those that resemble the true trigger most.

    Args:
        pool: Patterns, without end.
        poisoned: Images with and without the true trigger, and their targets.
        original: The model with the backdoor.
        innocents: Innocent models, if there are any.
        wanted: Placebos to keep. Where there are innocent models twice as many are looked for, to
            choose from.
        at_most: Patterns to draw at most.
        limit: Largest share of images, beyond those that go there anyway, that a placebo may take
            to the target on the original; and on an innocent model, where the true trigger does
            not take more of them itself. On marked images, what the same pattern takes on innocent
            models, in the mean, is added to the original's.
    """
    models = (original, *innocents)
    targets = poisoned.targets
    before = [_margins(model, poisoned.clean, targets) for model in models]
    true = [_margins(model, poisoned.triggered, targets) for model in models[1:]]
    true_shift = _shift(true, before[1:])
    # A trigger that covers the image may move innocent models by itself, and then so may placebos.
    limits = [limit] + [
        max(limit, _taken(now) - _taken(then)) for now, then in zip(true, before[1:], strict=True)
    ]
    hides = is_marked(poisoned.clean)
    enough = wanted * (2 if innocents else 1)
    found: list[Candidate] = []
    serving = 0
    for pattern in islice(pool, at_most):
        images = pattern.transform.stamp(poisoned.clean)
        after = [_margins(model, images, targets) for model in models]
        taken = [_taken(now) - _taken(then) for now, then in zip(after, before, strict=True)]
        why_not = None
        hidden = max(0.0, sum(taken[1:]) / len(innocents)) if hides and innocents else 0.0
        if taken[0] > limits[0] + hidden:
            why_not = ANSWERS
        elif any(t > most for t, most in zip(taken[1:], limits[1:], strict=True)):
            why_not = "it moves an innocent model by itself"
        serving += why_not is None
        found.append(
            Candidate(
                drawn=pattern,
                original=_taken(after[0]),
                innocent=max((_taken(now) for now in after[1:]), default=None),
                shift=_shift(after[1:], before[1:]),
                why_not=why_not,
            )
        )
        if serving == enough:
            break
    kept = [candidate for candidate in found if candidate.why_not is None]
    if true_shift is not None:
        kept.sort(key=lambda candidate: abs((candidate.shift or 0.0) - true_shift))
    kept = kept[:wanted]
    return Screening(tuple(kept), tuple(c for c in found if c not in kept), true_shift)


def _margins(model: Asked, images: Tensor, targets: Tensor) -> Tensor:
    return margins_of(model(images).cpu(), targets.cpu())


def margins_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Return (N,) the target's score less the best other one, of scores (N, K)."""
    scores, index = scores.float(), targets[:, None]
    others = scores.scatter(1, index, -torch.inf).amax(dim=1)
    return scores.gather(1, index)[:, 0] - others


def _taken(margins: Tensor) -> float:
    return float((margins > 0).float().mean())


def _shift(after: Sequence[Tensor], before: Sequence[Tensor]) -> float | None:
    """Return the mean over models of how far margins moved, over their spread on clean images."""
    if not after:
        return None
    moved = [(a - b).mean() / spread_of(b) for a, b in zip(after, before, strict=True)]
    return float(torch.stack(moved).mean())


def spread_of(margins: Tensor) -> Tensor:
    """Return the standard deviation of margins (N,), by which their changes are measured.

    It has a floor: of a detector that sees no candidate of the target's class in any box all
    margins are alike.
    """
    return margins.std().clamp_min(_LEAST_SPREAD)
