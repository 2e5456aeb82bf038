"""What is left of the original in the defended model: the coefficient, and the line of weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bdaudit.records.base import Fraction, Rate, Record

__all__ = [
    "BackdoorDirection",
    "BecRecord",
    "LayerBec",
    "LayerDirection",
    "LinePoint",
    "LossBarrier",
]


class LayerBec(Record):
    """One layer's part of the coefficient; see docs/bec.md."""

    layer: str
    channels: int
    channels_kept: int
    top_channels: tuple[int, ...]
    top_tac: tuple[float, ...]
    cka_defended: float | None
    cka_reference: float | None
    coefficient: float | None
    reason: str | None = None


class BecRecord(Record):
    """The backdoor existence coefficient against one reference.

    Attributes:
        value: Mean over layers of (S_DA - S_CA) / (1 - S_CA); 1: the whole circuit of the
            original is there; 0: no more alike than an innocent model. `None` when undefined.
        low, high: 95 % interval over images, `None` when not asked for (docs/bec.md).
        ratio_of_means: The variant that averages CKA over layers before normalising.
        elapsed_s: Of the whole measurement, all references together.
    """

    reference: str
    value: float | None
    low: float | None
    high: float | None
    ratio_of_means: float | None
    top_share: Fraction
    estimator: Literal["plain", "debiased"]
    n_samples: int
    n_bootstrap: int
    layers: tuple[LayerBec, ...]
    reason: str | None = None
    elapsed_s: float


class LinePoint(Record):
    """A model between the original and the defended one.

    Attributes:
        share: How far from the original, 0, to the defended model, 1.
        clean_loss: Mean cross-entropy on clean held-out images.
        clean_acc: Accuracy on them.
        asr: Of the trigger alone.
    """

    share: Fraction
    clean_loss: float
    clean_acc: Rate
    asr: Rate


class LossBarrier(Record):
    """What lies on the straight line of weights from the original to the defended model.

    Attributes:
        points: Both ends and what is between them.
        loss: How far the clean loss rises above the straight line between the ends, at the
            highest; 0 where it never does.
        error: The same of the share of clean images answered wrongly.
        batch_norm: Whether running statistics were measured anew between the ends, or there are
            none.
        n_calibration: Clean images that they were measured on.
    """

    points: tuple[LinePoint, ...] = Field(min_length=2)
    loss: float
    error: float
    batch_norm: Literal["measured anew", "none"]
    n_calibration: int

    @property
    def half_way(self) -> LinePoint:
        """The point in the middle."""
        return min(self.points, key=lambda point: abs(point.share - 0.5))


class LayerDirection(Record):
    """The backdoor direction of one layer: mean features with the trigger less those without.

    Attributes:
        cosine: Of the defended model's and the original's.
        strength: How far the trigger moves the defended model along the original's direction, as a
            share of how far it moves the original.
        halves: Cosine of the original's on one half of the images and on the other: what sampling
            leaves of 1.
        innocent: The largest cosine of an innocent model's and the original's; `None` without one.
    """

    layer: str
    cosine: float
    strength: float
    halves: float
    innocent: float | None


class BackdoorDirection(Record):
    """How much of a transformer's linear backdoor direction is left; means over layers."""

    cosine: float
    strength: float
    halves: float
    innocent: float | None
    n_innocent: int
    n_samples: int
    layers: tuple[LayerDirection, ...]
