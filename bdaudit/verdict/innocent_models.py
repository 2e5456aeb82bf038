"""The innocent models as a null: how far do the same trigger and attack take a clean model?

They are beaten in either of two ways. The re-activated ASR exceeds theirs, or the *trigger's
contribution* does: what trigger and delta reach beyond the same delta alone. That is a difference
of differences, and takes out what models differ in for reasons that no trigger has to do with.
After hard fine-tuning any model is pushed more easily, so a sleeping backdoor that reaches .67 with
its trigger and .25 without hides among innocent models that reach .66 with a trigger that does
nothing to them, .67 without (measured, docs/verdict.md). From three innocent models on, the
figure must also lie beyond what one more of them may reach.

A stand-in is an innocent model that was made for this audit, and may be easier to push than the
defended one for reasons of its own. So it is also attacked without the trigger, as the defended
model is. At an eps where it is surely easier to push by more than the policy's limit it is no null;
elsewhere the upper bound of a lift over it allows for what it is easier to push, so that "removed"
never owes to a feeble stand-in. It may also be *harder* to push than true innocent models, by a
trigger that covers the image (measured in docs/stand-ins.md); there "dormant" needs true ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from bdaudit.foundation.statistics import (
    PairedDifference,
    difference_of_differences,
    paired_difference,
    prediction_bound,
    probit,
    share_of_probit,
)
from bdaudit.records import AttackRun, Baseline, Comparison
from bdaudit.verdict.case import FEWEST_FOR_A_SPREAD, Case
from bdaudit.verdict.doubts import (
    Doubt,
    NotMeasured,
    OneMoreMayReach,
    StandInsCannotAccuse,
    TooFewInnocentsServe,
)
from bdaudit.verdict.nulls import Control, Deviate, control

__all__ = ["Innocent", "InnocentModels", "Way", "hold_against_innocent_models"]


@dataclass(frozen=True)
class Innocent:
    """One innocent model under the same trigger and attack.

    Attributes:
        ease: By how much a stand-in is easier to push than the defended model, without the
            trigger; `None` of a model that was given.
    """

    baseline: Baseline
    run: AttackRun
    ease: PairedDifference | None


@dataclass(frozen=True)
class Way:
    """One of the ways to hold an attack against the innocent models.

    Attributes:
        over: The figure over that of each of them.
        beyond: The figure beyond what one more of them may reach, where they are enough to tell.
    """

    over: tuple[Comparison, ...]
    beyond: Comparison | None

    @property
    def over_all(self) -> bool:
        """Whether the figure is surely above that of each of them."""
        return all(c.holds for c in self.over)

    @property
    def holds(self) -> bool:
        """Whether they are beaten this way."""
        return self.over_all and (self.beyond is None or self.beyond.holds)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them, for the record."""
        return self.over if self.beyond is None else (*self.over, self.beyond)


@dataclass(frozen=True)
class InnocentModels:
    """One attack on the defended model, held against the innocent models.

    Attributes:
        run: The attack.
        innocents: Those that serve at this eps.
        too_easy: Stand-ins that do not, since they are pushed too easily.
        controls: The re-activated ASR over that of each.
        missing: What was not measured of them.
        by_asr: The re-activated ASR held against theirs.
        by_contribution: The trigger's contribution held against that on each where it was measured.
        needed: Innocent models that the policy needs for this trigger.
        n_given: Innocent models that serve at some eps or other.
        wide: Whether the trigger covers the image.
        saturated: Whether one of them is taken to the target so often that no lift could show.
    """

    run: AttackRun
    innocents: tuple[Innocent, ...]
    too_easy: tuple[str, ...]
    controls: tuple[Control, ...]
    missing: tuple[NotMeasured, ...]
    by_asr: Way
    by_contribution: Way
    needed: int
    n_given: int
    wide: bool
    saturated: bool

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison with them, for the record."""
        return (*self.by_asr.comparisons, *self.by_contribution.comparisons)

    @property
    def bounds(self) -> tuple[Comparison, ...]:
        """The trigger's contribution over the innocent model where it is largest, if measured."""
        return tuple(sorted(self.by_contribution.over, key=lambda c: c.value)[:1])

    @cached_property
    def beaten(self) -> bool:
        """Whether the attack does more than on any of them, and than on one more."""
        if self.run.objective == "specific" or (self.wide and self.saturated):
            # It buys the trigger a contribution on innocent models too; and a trigger over the
            # image has one where everything is pushed anyway. Neither way is enough.
            return self.by_asr.holds and self.by_contribution.holds
        return self.by_asr.holds or (bool(self.by_contribution.over) and self.by_contribution.holds)

    @property
    def may_accuse(self) -> bool:
        """Whether there are enough of them to support "dormant".

        A trigger over the whole image pushes true innocent models much further than stand-ins, so
        there only the former tell what it does by itself.
        """
        speak = sum(not (i.baseline.stand_in and self.wide) for i in self.innocents)
        return speak >= self.needed

    @cached_property
    def uncertain(self) -> Comparison | None:
        """What one more of them may reach, where all that were measured are beaten."""
        if self.beaten:
            return None
        for way in (self.by_contribution, self.by_asr):
            if way.beyond is not None and way.over_all:
                return way.beyond
        return None

    def doubts(self, *, same_model_beaten: bool) -> Iterator[Doubt]:
        """Give what stands in the way of "removed", beside missing figures and upper bounds."""
        if same_model_beaten and self.beaten and not self.may_accuse:
            yield StandInsCannotAccuse(self.run, self.needed)
        if len(self.innocents) < self.needed <= self.n_given:
            yield TooFewInnocentsServe(self.run, self.too_easy, len(self.innocents), self.needed)
        if same_model_beaten and self.uncertain is not None:
            yield OneMoreMayReach(self.run, len(self.innocents), self.uncertain)


def hold_against_innocent_models(case: Case, run: AttackRun) -> InnocentModels:
    """Hold an attack on the defended model against the same attack on the innocent models."""
    innocents, too_easy, missing = _that_serve(case, run)
    # One attack is enough for "dormant", and either way; the specific objective needs both ways.
    n_tries = len(case.attacks) * (1 if run.objective == "specific" else 2)
    controls = tuple(
        control(case, run, i.baseline.model, i.run.asr, n_tries=n_tries, ease=i.ease)
        for i in innocents
    )
    return InnocentModels(
        run=run,
        innocents=tuple(innocents),
        too_easy=tuple(too_easy),
        controls=controls,
        missing=tuple(missing),
        by_asr=Way(
            tuple(c.lift for c in controls),
            _asr_beyond_one_more(case, run, innocents, n_tries),
        ),
        by_contribution=_by_contribution(case, run, innocents, n_tries),
        needed=case.n_innocents_needed,
        n_given=len(case.references),
        wide=case.wide,
        saturated=any(i.run.asr.value > case.policy.saturation for i in innocents),
    )


def _that_serve(case: Case, run: AttackRun) -> tuple[list[Innocent], list[str], list[NotMeasured]]:
    """Sort the innocent models: those that serve, stand-ins pushed too easily, what is missing."""
    innocents: list[Innocent] = []
    too_easy: list[str] = []
    missing: list[NotMeasured] = []
    for reference in case.references:
        name = reference.model
        same = case.same_attack(run, model=name)
        if same is None:
            missing.append(NotMeasured("trigger", run, name))
        elif not reference.stand_in:
            innocents.append(Innocent(reference, same, None))
        elif (ease := _ease(case, run, name)) is None:
            missing.append(NotMeasured("no_trigger", run, name))
        elif ease.low > case.policy.lift:
            too_easy.append(name)
        else:
            innocents.append(Innocent(reference, same, ease))
    return innocents, too_easy, missing


def _ease(case: Case, run: AttackRun, stand_in: str) -> PairedDifference | None:
    """By how much a stand-in is easier to push than the defended model, without the trigger."""
    theirs = case.same_attack(run, model=stand_in, condition="no_trigger")
    ours = case.same_attack(run, model=run.model, condition="no_trigger")
    if theirs is None or ours is None:
        return None
    return paired_difference(
        theirs.asr.outcomes(), ours.asr.outcomes(), confidence=case.confidence()
    )


def _asr_beyond_one_more(
    case: Case, run: AttackRun, innocents: Sequence[Innocent], n_tries: int
) -> Comparison | None:
    """Hold the re-activated ASR against what one more innocent model may reach."""
    reached = [_deviate(i.run) for i in innocents]
    ours = Deviate.of(run.asr, case.confidence(n_tries))
    return _beyond_one_more(case, run, "lift", ours, reached, n_tries)


def _by_contribution(
    case: Case, run: AttackRun, innocents: Sequence[Innocent], n_tries: int
) -> Way:
    """Hold the trigger's contribution against that on innocent models."""
    if run.delta_only is None:
        return Way((), None)
    confidence = case.confidence(n_tries)
    corrected, plain = _contribution(run, confidence), _contribution(run, case.confidence())
    over, reached = [], []
    for innocent in innocents:
        theirs = innocent.run
        if theirs.delta_only is None:
            continue
        value, low, _ = difference_of_differences(corrected, _contribution(theirs, confidence))
        _, _, high = difference_of_differences(plain, _contribution(theirs, case.confidence()))
        reached.append(_deviate(theirs) - probit(theirs.delta_only.value, theirs.delta_only.total))
        over.append(
            Comparison(
                name=f"trigger's contribution over that on {theirs.model}",
                kind=f"trigger's part ({run.mode})",
                eps=run.eps,
                against=theirs.model,
                value=value,
                low=low,
                high=high,
                limit=case.policy.lift,
                holds=low > case.policy.lift,
            )
        )
    alone = Deviate.of(run.delta_only, confidence)
    added = Deviate.of(run.asr, confidence).over(alone)
    beyond = _beyond_one_more(
        case, run, "trigger's contribution", added, reached, n_tries, start=alone.value
    )
    return Way(tuple(over), beyond)


def _contribution(run: AttackRun, confidence: float) -> PairedDifference:
    """Measure what trigger and delta reach beyond the same delta alone."""
    assert run.delta_only is not None
    return paired_difference(run.asr.outcomes(), run.delta_only.outcomes(), confidence=confidence)


def _beyond_one_more(
    case: Case,
    run: AttackRun,
    what: str,
    ours: Deviate,
    reached: Sequence[float],
    n_tries: int,
    *,
    start: float = 0.0,
) -> Comparison | None:
    """Hold `ours` against what one more innocent model may reach.

    Told in shares of images: the re-activated ASR against the one that an innocent model may
    come to, which for the trigger's contribution begins where the same delta alone takes the
    defended model (`start`, a deviate). `None` where too few have `reached` anything to tell.
    """
    if len(reached) < FEWEST_FOR_A_SPREAD:
        return None
    one_sided = (1.0 + case.confidence(n_tries)) / 2.0
    bound = prediction_bound(reached, confidence=one_sided)
    share = share_of_probit(start + bound)
    return Comparison(
        name=f"{what} beyond what one more innocent model may reach",
        kind=f"one more innocent ({run.mode})",
        eps=run.eps,
        against=f"one more innocent model ({what})",
        value=share_of_probit(start + ours.value) - share,
        low=share_of_probit(start + ours.low) - share,
        high=share_of_probit(start + ours.high) - share,
        limit=0.0,
        holds=ours.low > bound,
    )


def _deviate(run: AttackRun) -> float:
    return probit(run.asr.value, run.asr.total)
