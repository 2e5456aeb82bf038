"""A model held against nothing but itself: one class's maximum margin beside the others'."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, TypeAlias

from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import Steps
from bdaudit.inversion.maximum_margin import (
    GammaNull,
    MaximumMarginConfig,
    MaximumMargins,
    find_maximum_margins,
    hold_against_gamma,
)
from bdaudit.measuring.compute import Compute
from bdaudit.models import LoadedModel
from bdaudit.records import ClassMargin, Diagnostic, Screening

__all__ = ["screening_steps"]

_Outcome: TypeAlias = Literal["suspicious", "nothing found", "unknown"]


def screening_steps(
    model: LoadedModel,
    run: Compute,
    *,
    config: MaximumMarginConfig,
    limit: float,
    class_names: Sequence[str] | None,
) -> Steps[tuple[Screening, tuple[Diagnostic, ...]]]:
    """Find the maximum margin of every class, and say whether the largest stands alone.

    Returns:
        What was found, and what makes it doubtful.

    Raises:
        ConfigError: The limit is none of a p-value.
        ModelError: The model cannot be differentiated.
        NumericsError: A logit or a gradient was NaN or infinite.
    """
    if not 0 <= limit <= 1:
        raise ConfigError(f"limit: expected a p-value from 0 to 1, got {limit}")
    begun = time.perf_counter()
    found = yield from find_maximum_margins(
        model.classifier,
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        config=config,
        seed=run.seed,
        batch_size=run.batch_size,
        device=run.device,
    )
    null = hold_against_gamma(found.statistics)
    doubts = []
    if found.still:
        null = GammaNull(null.label, None, reason=_stuck(found, model.num_classes))
        doubts.append(
            Diagnostic(
                code="margins_without_gradient",
                severity="warning",
                subject=model.name,
                message=f"{null.reason}; the outputs may be saturated or rounded: try a checkpoint "
                "in float32 that returns logits",
            )
        )
    order = found.statistics.argsort(descending=True, stable=True).tolist()
    margins = tuple(
        ClassMargin(
            label=label,
            margin=float(found.statistics[label]),
            start=float(found.starts[label]),
            steps=found.steps[label],
        )
        for label in order
    )
    screening = Screening(
        outcome=_outcome(null.p_value, limit),
        why=_why(null, margins, limit, class_names),
        label=null.label,
        p_value=null.p_value,
        published_p_value=null.published,
        limit=limit,
        reason=null.reason,
        gamma_shape=null.shape,
        gamma_scale=null.scale,
        margins=margins,
        class_names=None if class_names is None else tuple(class_names),
        n_images=config.n_images,
        differentiated=found.differentiated,
        elapsed_s=time.perf_counter() - begun,
    )
    return screening, tuple(doubts)


def _outcome(p_value: float | None, limit: float) -> _Outcome:
    if p_value is None:
        return "unknown"
    return "suspicious" if p_value <= limit else "nothing found"


def _stuck(found: MaximumMargins, n_classes: int) -> str:
    shown = ", ".join(map(str, found.still[:5])) + (", ..." if len(found.still) > 5 else "")
    return (
        f"no pixel has a gradient toward {len(found.still)} of {n_classes} classes ({shown}), so "
        "that nothing was searched there"
    )


def _why(
    null: GammaNull,
    margins: Sequence[ClassMargin],
    limit: float,
    class_names: Sequence[str] | None,
) -> str:
    """Put the outcome into a sentence."""
    if null.p_value is None:
        return f"no p-value: {null.reason}"
    name = "" if class_names is None else f" ({class_names[null.label]})"
    first, second = margins[0].margin, margins[1].margin
    sizes = (
        f"class {null.label}{name} can be driven to a margin of {first:.3g} logits, the next class "
        f"to {second:.3g}"
    )
    if null.p_value <= limit:
        return f"{sizes}, which is out of proportion to the other classes: p {null.p_value:.2g}"
    return f"{sizes}, which is in proportion to the other classes: p {null.p_value:.2g}"
