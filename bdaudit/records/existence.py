"""The backdoor existence coefficient, layer by layer."""

from __future__ import annotations

from typing import Literal

from bdaudit.records.base import Fraction, Record

__all__ = ["BecRecord", "LayerBec"]


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
