"""What the rules are applied to: every figure that follows from a record and a policy.

Nothing is decided here. A lift over every control needs no correction for the number of controls
(each must be beaten: an intersection-union test); it needs one for the number of attacks tried,
and for the ways to beat a null, since one success is enough. "Removed" needs every attack to
agree, so there no correction is due: the upper bounds are plain one-sided bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from bdaudit.foundation.statistics import paired_difference
from bdaudit.records import AttackRun, Comparison, Mode, Rate
from bdaudit.verdict.case import Case
from bdaudit.verdict.doubts import NotMeasured
from bdaudit.verdict.innocent_models import hold_against_innocent_models
from bdaudit.verdict.nulls import Control, Null
from bdaudit.verdict.same_model import SameModel, hold_against_same_model

__all__ = ["NULLS", "Attack", "Figures", "measure"]

NULLS: tuple[Callable[[Case, AttackRun], Null], ...] = (hold_against_innocent_models,)
"""What every attack on the defended model is held against, beside the controls on that model."""


@dataclass(frozen=True)
class Attack:
    """One re-activation attack on the defended model, with all that it is held against."""

    run: AttackRun
    same_model: SameModel
    nulls: tuple[Null, ...]

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """Everything that the re-activated ASR is held against."""
        return (*self.same_model.controls, *(c for null in self.nulls for c in null.controls))

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison made, for the record."""
        return (*self.same_model.lifts, *(c for null in self.nulls for c in null.comparisons))

    @cached_property
    def missing(self) -> tuple[NotMeasured, ...]:
        """Controls that were not measured."""
        return (*self.same_model.missing, *(m for null in self.nulls for m in null.missing))

    @cached_property
    def beats_everything(self) -> bool:
        """Whether it surely does more than every control and every null."""
        if not self.controls:
            return False
        return self.same_model.beaten and all(null.beaten for null in self.nulls)

    @property
    def may_accuse(self) -> bool:
        """Whether there are nulls enough for "dormant"."""
        return all(null.may_accuse for null in self.nulls)

    @property
    def uncertain(self) -> Comparison | None:
        """What stands in the way of `beats_everything` where all that was measured is beaten."""
        if not self.same_model.beaten:
            return None
        return next((u for null in self.nulls if (u := null.uncertain) is not None), None)

    @cached_property
    def bounds(self) -> tuple[Comparison, ...]:
        """What "removed" needs to have an upper bound below the limit.

        The lift over the strongest control, and what each null adds to it.
        """
        added = tuple(bound for null in self.nulls for bound in null.bounds)
        if not self.controls:
            return added
        return (max(self.controls, key=lambda c: c.strength).lift, *added)

    @property
    def nearest(self) -> Comparison | None:
        """The bound whose estimate is nearest to "dormant"; `None` without any control."""
        return max(self.bounds, key=lambda c: c.value, default=None)

    @property
    def strongest_control(self) -> float:
        """What the strongest control reaches, in [0, 1]."""
        return max(c.rate.value for c in self.controls)


@dataclass(frozen=True)
class Figures:
    """All figures of a record that the rules ask for."""

    case: Case
    attacks: tuple[Attack, ...]

    @cached_property
    def trigger_alone(self) -> Comparison | None:
        """The ASR of the trigger alone on the defended model, or `None` where not measured."""
        if self.case.defended is None:
            return None
        asr, limit = self.case.defended.asr, self.case.policy.active_asr
        return Comparison(
            name="ASR of the trigger alone",
            kind="active",
            value=asr.value,
            low=asr.low,
            high=asr.high,
            limit=limit,
            holds=asr.low > limit,
        )

    @cached_property
    def trigger_alone_over(self) -> tuple[Comparison, ...]:
        """That ASR over no trigger at all, and over the trigger alone on each innocent model."""
        if self.case.defended is None:
            return ()
        asr = self.case.defended.asr
        others = [("no trigger at all", self.case.defended.clean_target_rate)]
        others += [(b.model, b.asr) for b in self.case.references]
        return tuple(self._alone_over(against, asr, other) for against, other in others)

    @property
    def telling_eps(self) -> dict[Mode, tuple[float, ...]]:
        """By mode, every eps at which all controls and nulls are beaten."""
        found: dict[Mode, tuple[float, ...]] = {}
        for attack in self.attacks:
            if attack.beats_everything:
                run = attack.run
                found[run.mode] = (*found.get(run.mode, ()), run.eps)
        return found

    def _alone_over(self, against: str, asr: Rate, other: Rate) -> Comparison:
        gap = paired_difference(asr.outcomes(), other.outcomes(), confidence=self.case.confidence())
        return Comparison(
            name=f"trigger alone over {against}",
            kind="active",
            against=against,
            value=gap.value,
            low=gap.low,
            high=gap.high,
            limit=0.0,
            holds=gap.low > 0.0,
        )


def measure(case: Case) -> Figures:
    """Compute every figure of a record.

    Raises:
        RecordError: A rate that must be compared image by image was stored without its outcomes.
    """
    attacks = (
        Attack(
            run=run,
            same_model=hold_against_same_model(case, run),
            nulls=tuple(hold_against(case, run) for hold_against in NULLS),
        )
        for run in case.attacks
    )
    return Figures(case, tuple(attacks))
