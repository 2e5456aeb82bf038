"""From the similarities of single layers to the coefficient, its interval and its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

from bdaudit.records import LayerBec

__all__ = ["Coefficient", "LayerEvidence", "combine_layers", "half_sample_interval"]

_UNDEFINED_ABOVE = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvidence:
    """What was measured of one layer, for one reference.

    Attributes:
        layer: Its name.
        tac: Trigger-activated change (channels,) of every channel; empty if it never ran.
        kept: Indices (k,) of the channels compared, largest TAC first.
        defended: S_DA (1 + B,), on the whole sample and then on every half-sample; `None` if not
            measured.
        reference: S_CA (1 + B,), likewise.
        reason: Why they were not measured.
    """

    layer: str
    tac: Tensor = field(default_factory=lambda: torch.empty(0))
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    defended: Tensor | None = None
    reference: Tensor | None = None
    reason: str | None = None

    def record(self) -> LayerBec:
        """Put the layer's part of the coefficient in a record."""
        defended = None if self.defended is None else float(self.defended[0])
        reference = None if self.reference is None else float(self.reference[0])
        coefficient, reason = None, self.reason
        if defended is not None and reference is not None:
            if reference > _UNDEFINED_ABOVE:
                reason = (
                    "undefined: the reference is as similar to the original here as the original "
                    f"is to itself (CKA {reference:.7f})"
                )
            else:
                coefficient = (defended - reference) / (1 - reference)
        return LayerBec(
            layer=self.layer,
            channels=len(self.tac),
            channels_kept=len(self.kept),
            top_channels=tuple(self.kept.tolist()),
            top_tac=tuple(self.tac[self.kept].tolist()),
            cka_defended=defended,
            cka_reference=reference,
            coefficient=coefficient,
            reason=reason,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """The coefficient over all layers; every field is `None` where it is undefined.

    Attributes:
        value: Mean over layers of (S_DA - S_CA) / (1 - S_CA).
        ratio_of_means: The same of the means of S_DA and S_CA over layers.
        low: Lower end of the interval of `value`.
        high: Upper end.
    """

    value: float | None
    ratio_of_means: float | None
    low: float | None = None
    high: float | None = None


def combine_layers(layers: Sequence[LayerEvidence], confidence: float) -> Coefficient:
    """Combine layers into the coefficient.

    A layer whose S_CA is within 1e-6 of 1 has no part in `value`, for all samples alike.
    """
    measured = [
        (layer.defended, layer.reference)
        for layer in layers
        if layer.defended is not None and layer.reference is not None
    ]
    if not measured:
        return Coefficient(value=None, ratio_of_means=None)
    defended, reference = (torch.stack(column).double() for column in zip(*measured, strict=True))
    ratio = None
    if float(reference[:, 0].mean()) <= _UNDEFINED_ABOVE:
        ratio = float(_normalised(defended[:, 0].mean(), reference[:, 0].mean()))
    defined = reference[:, 0] <= _UNDEFINED_ABOVE
    if not bool(defined.any()):
        return Coefficient(value=None, ratio_of_means=ratio)
    values = _normalised(defended[defined], reference[defined]).mean(0)  # (1 + B,)
    low, high = half_sample_interval(values[0], values[1:], confidence)
    return Coefficient(value=float(values[0]), ratio_of_means=ratio, low=low, high=high)


def _normalised(defended: Tensor, reference: Tensor) -> Tensor:
    return (defended - reference) / (1 - reference)


def half_sample_interval(
    value: Tensor, half_values: Tensor, confidence: float
) -> tuple[float, float] | tuple[None, None]:
    """Interval of an estimate from its values on random halves of the sample.

    The spread over halves drawn without replacement estimates the standard error of the whole
    sample's value without any scaling: half as many inputs double the variance, and drawing half
    of a finite sample halves it again. An ordinary bootstrap covers too seldom here (docs/bec.md),
    since an input drawn twice is perfectly similar to itself and pulls every CKA toward 1. The
    spread is centred on the whole sample's value, as plain CKA is larger on fewer inputs.

    Args:
        value: The estimate on the whole sample, a scalar.
        half_values: (B,) on the halves; values that are not finite are skipped.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper end, or a pair of `None` with fewer than 20 finite values.

    Source: the delete-d jackknife with d = N / 2, Shao and Wu, Annals of Statistics 17 (1989).
    """
    finite = half_values[half_values.isfinite()]
    if len(finite) < 20:
        return None, None
    half_width = float(stats.norm.ppf(0.5 + confidence / 2) * finite.std())
    return float(value) - half_width, float(value) + half_width
