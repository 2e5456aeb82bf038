"""Which scale a black box's scores are on: logits or probabilities, exact or rounded.

A loss wants logits, a served model usually gives probabilities, and an API often rounds them. What
the scores are is looked at once, on the first answers, and then held to: a search whose scale
changed on the way would compare numbers that cannot be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from bdaudit.errors import ConfigError

__all__ = [
    "ScoreKind",
    "ScoreScale",
    "are_probabilities",
    "detect_scale",
    "rounding_step",
    "spread_one_score",
]

ScoreKind: TypeAlias = Literal["logits", "probabilities"]

_ROW_SUM_TOLERANCE = 1e-3
# How far float32 puts a decimal fraction from itself, relative to it. Relative, since a confident
# model's 1e-9 is close to 0 and was not rounded to it.
_RELATIVE_TOLERANCE = 5e-7
_STEPS = (0.1, 0.01, 0.001, 0.0001, 1 / 255, 0.00001)
# Half of what lies between 1 and the float32 below it: of a probability of 1 nothing more is known
# of the other class than that it is likelier by less.
_LEAST_REST = 2.0**-25


@dataclass(frozen=True, kw_only=True)
class ScoreScale:
    """How raw scores become log-scale scores.

    Attributes:
        kind: "logits" are taken as they are (log-probabilities are logits too), "probabilities"
            through the logarithm.
        step: The step that probabilities are rounded to, such as 0.01; `None` when not rounded.

    Raises:
        ConfigError: The step is not in (0, 1], or was given for logits.
    """

    kind: ScoreKind
    step: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("logits", "probabilities"):
            raise ConfigError(f"kind: expected logits or probabilities, got {self.kind!r}")
        if self.step is not None and (self.kind == "logits" or not 0 < self.step <= 1):
            raise ConfigError(
                f"step: expected a number in (0, 1] beside probabilities, got {self.step} beside "
                f"{self.kind}"
            )

    @property
    def floor(self) -> float:
        """The least probability that a logarithm is taken of.

        A probability rounded to 0 is known to be below half a step and nothing more; taking it for
        1e-38 would let the rounding of one class outweigh everything else in a loss.
        """
        return self.step / 2 if self.step is not None else torch.finfo(torch.float32).tiny

    def to_log_scale(self, scores: Tensor) -> Tensor:
        """Map raw scores (N, K) to logits or log-probabilities (N, K), float32."""
        scores = scores.float()
        return scores if self.kind == "logits" else scores.clamp_min(self.floor).log()

    def admits(self, scores: Tensor) -> bool:
        """Whether raw scores (N, K) can be on this scale; any finite scores can be logits."""
        return self.kind == "logits" or are_probabilities(scores, step=self.step)


def are_probabilities(scores: Tensor, *, step: float | None = None) -> bool:
    """Whether every row of scores (N, K) is in [0, 1] and sums to 1.

    Args:
        scores: (N, K).
        step: A known rounding step, which moves the sum of K entries by up to K steps / 2.
    """
    tolerance = _ROW_SUM_TOLERANCE + (0.0 if step is None else step * scores.shape[1] / 2)
    inside = bool(((scores >= 0) & (scores <= 1 + _ROW_SUM_TOLERANCE)).all())
    return inside and bool(((scores.double().sum(dim=1) - 1).abs() <= tolerance).all())


def rounding_step(scores: Tensor) -> float | None:
    """Return the coarsest common step (0.1, 0.01, ..., 1/255) that all scores are multiples of.

    Args:
        scores: Any shape, in [0, 1].

    Returns:
        The step, or `None` when there is none, or when every score is 0 or 1: one-hot answers are
        what a certain model gives and say nothing about rounding.
    """
    values = scores.double().flatten()
    if bool(((values == 0) | (values == 1)).all()):
        return None
    for step in sorted(_STEPS, reverse=True):
        nearest = (values / step).round() * step
        if bool(((values - nearest).abs() <= _RELATIVE_TOLERANCE * values).all()):
            return step
    return None


def detect_scale(scores: Tensor) -> ScoreScale:
    """Return what raw scores (N, K) are: probabilities where they can be, logits otherwise.

    Two rows or more make chance agreement hopeless; with two classes one row can mislead. One score
    an image, (N, 1), is a probability where all are in [0, 1]. Logits of a classifier that knows
    its two classes are not: those of class 0 are below 0.
    """
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    step = rounding_step(scores) if inside else None
    if (inside and scores.shape[1] == 1) or are_probabilities(scores, step=step):
        return ScoreScale(kind="probabilities", step=step)
    return ScoreScale(kind="logits")


def spread_one_score(scores: Tensor, kind: ScoreKind) -> Tensor:
    """Turn one score an image (N, 1), which is for class 1, into scores of two classes (N, 2).

    A logit z becomes (0, z), whose softmax is the sigmoid of z. A probability p becomes (1 - p, p);
    where p is 1, the other class gets half of the least that float32 could have told.
    """
    if kind == "logits":
        return torch.cat((torch.zeros_like(scores), scores), dim=1)
    rest = (1.0 - scores.double()).clamp_min(_LEAST_REST).float()
    return torch.cat((rest, scores), dim=1)
