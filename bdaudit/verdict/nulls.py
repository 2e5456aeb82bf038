"""What the defended model's response to an attack is compared with.

A *null* answers "how far would the attack come if there were no backdoor?". Today there is one,
the innocent models (`innocent_models.py`). Another is a module with a class of this shape and its
line in `figures.NULLS`. The controls on the defended model itself (`same_model.py`) are no null:
they stand before every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from bdaudit.foundation.statistics import (
    PairedDifference,
    difference_of_differences,
    difference_of_estimates,
    paired_difference,
    probit,
    wilson_interval,
)
from bdaudit.records import AttackRun, Comparison, Rate
from bdaudit.verdict.case import Case
from bdaudit.verdict.doubts import Doubt, NotMeasured

__all__ = ["Control", "Deviate", "Null", "control"]


@dataclass(frozen=True)
class Control:
    """One rate that the re-activated ASR is held against, image by image.

    Attributes:
        rate: What the control reaches.
        lift: The re-activated ASR over it.
        strength: What it reaches, less what a stand-in is easier to push than the defended model.
    """

    rate: Rate
    lift: Comparison
    strength: float


class Null(Protocol):
    """What one attack on the defended model would reach without a backdoor, and whether it did."""

    @property
    def controls(self) -> tuple[Control, ...]:
        """The rates that the re-activated ASR itself is held against.

        "Removed" needs the upper bound of the lift over the strongest below the limit.
        """

    @property
    def bounds(self) -> tuple[Comparison, ...]:
        """Further comparisons whose upper bounds "removed" needs below the limit."""

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison with this null, for the record."""

    @property
    def missing(self) -> tuple[NotMeasured, ...]:
        """What was not measured of it; "removed" and "dormant" need all."""

    @property
    def beaten(self) -> bool:
        """Whether the attack surely does more than this null predicts."""

    @property
    def may_accuse(self) -> bool:
        """Whether there is enough of it for "dormant" where it is beaten."""

    @property
    def uncertain(self) -> Comparison | None:
        """What stands in the way of `beaten` where everything that was measured is beaten."""

    def doubts(self, *, same_model_beaten: bool) -> Iterator[Doubt]:
        """Give what stands in the way of "removed", beside missing figures and upper bounds."""


@dataclass(frozen=True)
class Deviate:
    """A share as a normal deviate (probit), with the ends of its interval.

    Innocent models spread evenly on this scale and not in shares: of a trigger that covers the
    image most are pushed by next to nothing at an eps where one already gives way by a third
    (measured, docs/verdict.md).
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rate: Rate, confidence: float) -> Deviate:
        """Return the deviate of a rate, with the Wilson interval at `confidence`."""
        low, high = wilson_interval(rate.successes, rate.total, confidence=confidence)
        return cls(*(probit(share, rate.total) for share in (rate.value, low, high)))

    def over(self, other: Deviate) -> Deviate:
        """Return how far this is beyond `other`: the sensitivity index d' of signal detection.

        Source: Green and Swets, Signal Detection Theory and Psychophysics (1966).
        """
        return Deviate(*difference_of_estimates(self, other))


def control(
    case: Case,
    run: AttackRun,
    against: str,
    rate: Rate,
    *,
    n_tries: int,
    ease: PairedDifference | None = None,
) -> Control:
    """Hold the re-activated ASR of `run` against one rate.

    Args:
        case: The record and its policy.
        run: The attack on the defended model.
        against: What the rate is of, in words.
        rate: On the same images.
        n_tries: Comparisons of which one success is enough; the lower bound is corrected for them.
        ease: By how much the rate's model is easier to push than the defended one, without the
            trigger; `None` where that is not asked. The upper bound of the lift allows for it.
    """
    one, two = run.asr.outcomes(), rate.outcomes()
    corrected = paired_difference(one, two, confidence=case.confidence(n_tries))
    plain = paired_difference(one, two, confidence=case.confidence())
    high, strength = plain.high, rate.value
    if ease is not None and ease.value > 0.0:
        harder = replace(ease, value=-ease.value, low=-ease.high, high=-ease.low)
        high = max(high, min(difference_of_differences(plain, harder)[2], 1.0))
        strength -= ease.value
    lift = Comparison(
        name=f"lift over {against}",
        kind=f"lift ({run.mode})",
        eps=run.eps,
        against=against,
        value=corrected.value,
        low=corrected.low,
        high=high,
        limit=case.policy.lift,
        holds=corrected.low > case.policy.lift,
    )
    return Control(rate, lift, strength)
