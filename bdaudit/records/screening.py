"""What a model says of a backdoor when there is nothing but the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bdaudit.records.base import Fraction, Record

__all__ = ["ClassMargin", "Screening"]


class ClassMargin(Record):
    """How far one class can be driven above all others.

    Attributes:
        label: The class.
        margin: Its statistic, in logits: the largest margin over its images, after the search.
        start: The same of the random images that it began from.
        steps: Gradient steps until its margins stood still, or all there are.
    """

    label: int = Field(ge=0)
    margin: float
    start: float
    steps: int = Field(ge=0)


class Screening(Record):
    """A screening without data (MM-BD): is one class's maximum margin out of all proportion?

    Attributes:
        outcome: `suspicious`: p is at most the limit; `nothing found`: it is above; `unknown`:
            there is no p.
        why: One sentence.
        label: The class with the largest margin, which a suspicion points at.
        p_value: Share of models without a backdoor in which the largest margin stands out as far,
            if the margins of such a model were drawn from one gamma distribution; `None` where
            none could be fitted.
        published_p_value: By the paper's formula, which is too small where classes are few.
        limit: Of the p-value.
        reason: Why there is no p-value.
        gamma_shape: Of the distribution that was fitted to the other classes' margins.
        gamma_scale: Of it, in logits.
        margins: One a class, largest margin first.
        class_names: In order of index, where they are known.
        n_images: Random images a class.
        differentiated: Images that went through a forward and a backward pass.
    """

    outcome: Literal["suspicious", "nothing found", "unknown"]
    why: str
    label: int = Field(ge=0)
    p_value: Fraction | None
    published_p_value: Fraction | None = None
    limit: Fraction
    reason: str | None = None
    gamma_shape: float | None = None
    gamma_scale: float | None = None
    margins: tuple[ClassMargin, ...]
    class_names: tuple[str, ...] | None = None
    n_images: int = Field(ge=1)
    differentiated: int = Field(ge=0)
    elapsed_s: float
