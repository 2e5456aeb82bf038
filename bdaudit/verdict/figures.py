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
from bdaudit.records import AttackRun, Comparison, Mode, Rate, Relearning
from bdaudit.verdict.case import Case
from bdaudit.verdict.doubts import NotMeasured
from bdaudit.verdict.innocent_models import hold_against_innocent_models
from bdaudit.verdict.nulls import Control, Null
from bdaudit.verdict.placebos import PlaceboNull, hold_against_placebos, is_telling
from bdaudit.verdict.same_model import SameModel, hold_against_same_model

__all__ = ["NULLS", "Attack", "Figures", "measure"]

NULLS: tuple[Callable[[Case, AttackRun], Null], ...] = (hold_against_innocent_models,)
"""What every attack on the defended model is held against, beside the controls on that model."""


@dataclass(frozen=True)
class Attack:
    """One re-activation attack on the defended model, with all that it is held against.

    Attributes:
        run: The attack.
        same_model: The controls on the defended model itself, which every attack must beat.
        nulls: The innocent models.
        placebos: The placebos; `None` where the attack was not made with them.
        by_placebos: Whether placebos decide in this audit, in place of the other nulls.
        telling: Whether the attack can tell anything by placebos: it reaches the policy's lift,
            and the controls on the same model leave room for one.
        limit: That lift.
    """

    run: AttackRun
    same_model: SameModel
    nulls: tuple[Null, ...]
    placebos: PlaceboNull | None
    by_placebos: bool
    telling: bool
    limit: float

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """Everything that the re-activated ASR itself is held against."""
        if self.by_placebos:
            return self.same_model.controls
        return (*self.same_model.controls, *(c for null in self.nulls for c in null.controls))

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison that counts, for the record."""
        if not self.by_placebos:
            others = (c for null in self.nulls for c in null.comparisons)
            return (*self.same_model.lifts, *others)
        over = () if self.placebos is None else (self.placebos.over,)
        return (*over, *self.same_model.lifts)

    @cached_property
    def missing(self) -> tuple[NotMeasured, ...]:
        """Controls that were not measured."""
        if not self.by_placebos:
            return (*self.same_model.missing, *(m for null in self.nulls for m in null.missing))
        if self.telling and self.placebos is None:
            return (*self.same_model.missing, NotMeasured("placebo", self.run))
        return self.same_model.missing

    @cached_property
    def beats_everything(self) -> bool:
        """Whether it surely does more than every control and every null."""
        if not self.controls or not self.same_model.beaten:
            return False
        if self.by_placebos:
            return self.placebos is not None and self.placebos.beaten
        return all(null.beaten for null in self.nulls)

    @cached_property
    def beats_innocents(self) -> bool:
        """Whether it surely does more than every null, and anything more than on the same model.

        Too little for "dormant" by itself: see `rules.dormant`. Innocent models it must have been
        held against, and not placebos.
        """
        if self.by_placebos or not any(null.controls for null in self.nulls):
            return False
        return self.same_model.exceeded and all(null.beaten for null in self.nulls)

    @property
    def may_accuse(self) -> bool:
        """Whether there are nulls enough for "dormant"."""
        return self.by_placebos or all(null.may_accuse for null in self.nulls)

    @property
    def uncertain(self) -> Comparison | None:
        """What stands in the way of `beats_everything` where all that was measured is beaten."""
        if not self.same_model.beaten or self.by_placebos:
            return None
        return next((u for null in self.nulls if (u := null.uncertain) is not None), None)

    @cached_property
    def bounds(self) -> tuple[Comparison, ...]:
        """What "removed" needs to have an upper bound below the limit.

        By placebos: the lift over what they predict; where the attack does not reach the
        policy's lift at all, what it reaches; nothing at an eps where the controls saturate.
        Else: the lift over the strongest control, and what each null adds to it.
        """
        if self.by_placebos:
            if self.placebos is not None:
                return (self.placebos.over,)
            return (self._reached(),) if self.run.asr.high < self.limit else ()
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
        """What the strongest control reaches, or placebos predict, in [0, 1]."""
        reached = [c.rate.value for c in self.controls]
        return max(reached if self.placebos is None else [*reached, self.placebos.expected])

    def _reached(self) -> Comparison:
        """Return the re-activated ASR itself, where that is too little to be a lift."""
        asr = self.run.asr
        return Comparison(
            name="re-activated ASR",
            kind=f"lift ({self.run.mode})",
            eps=self.run.eps,
            value=asr.value,
            low=asr.low,
            high=asr.high,
            limit=self.limit,
            holds=False,
        )


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
    def remembered(self) -> Relearning | None:
        """Relearning, where it surely brings the trigger back faster than in innocent models."""
        relearning = self.case.record.relearning
        return relearning if relearning is not None and relearning.outcome == "dormant" else None

    def seconds(self, attack: Attack) -> bool:
        """Return whether attack and relearning say "dormant" together."""
        heard = self.remembered is not None and self.case.policy.relearning == "witness"
        return heard and attack.beats_innocents

    @property
    def telling_eps(self) -> dict[Mode, tuple[float, ...]]:
        """By mode, every eps at which an attack, alone or with relearning, speaks for "dormant"."""
        found: dict[Mode, tuple[float, ...]] = {}
        for attack in self.attacks:
            if attack.beats_everything or self.seconds(attack):
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
            placebos=hold_against_placebos(case, run) if case.by_placebos else None,
            by_placebos=case.by_placebos,
            telling=is_telling(
                run, case.same_attack(run, model=run.model, condition="no_trigger"), case.policy
            ),
            limit=case.policy.lift,
        )
        for run in case.attacks
    )
    return Figures(case, tuple(attacks))
