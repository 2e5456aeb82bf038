"""Placebo triggers as a null: how far do other triggers come that nobody trained the model on?

Each placebo is as strong as the true trigger, is ignored by the original, and gets an attack of
its own with the same budget, on the defended model and on innocent ones. If the backdoor is gone,
the true trigger is one of many; if it sleeps, it stands out. How the model was tuned, and how
easily anything pushes it, is the same on both sides.

A trigger that covers the image does more than its placebos by its nature: a sinusoid does so on
innocent models too. So what counts is a *difference of differences* of probits z: between the
defended model and the innocent ones, of the true trigger t and the placebos p,

    d(x) = z_defended(x) - mean over innocent models of z(x),     D = d(t) - mean over p of d(p).

Without a backdoor t is to the two models what any p is, so d(t) is one more draw of what the
d(p) are drawn from, and D is held against the prediction bound of one more draw (Hahn 1969). To
the spread of the d(p) is added what the placebos cannot show: how much innocent models differ in
what the true trigger does beyond its placebos (the policy's `placebo_spread`, measured in
docs/placebos.md). A local trigger can be judged without innocent models, since to them it is no
more than its placebos are: then d(x) = z_defended(x). One that was recovered cannot, wherever it
lies: it was made by descending a model, and acts on others as such patches do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, pi, sqrt

import numpy as np
from scipy import special  # and not stats, which takes half a second to import

from bdaudit.foundation.statistics import probit, share_of_probit
from bdaudit.records import AttackRun, Comparison, Rate
from bdaudit.verdict.case import Case
from bdaudit.verdict.policy import Policy

__all__ = [
    "FEWEST_PLACEBOS",
    "PlaceboNull",
    "Prediction",
    "Reached",
    "hold_against_placebos",
    "is_telling",
    "predict",
]

FEWEST_PLACEBOS = 5
"""Of fewer the spread says too little."""


@dataclass(frozen=True)
class PlaceboNull:
    """One attack on the defended model, held against the same attack with placebos.

    Attributes:
        run: The attack with the true trigger.
        reached: What each placebo reaches on the defended model.
        innocents: Names of the innocent models that were attacked with the same placebos.
        expected: What the true trigger would reach without a backdoor, as a share.
        over: What it reaches beyond that. `low` and `high` are its one-sided bounds, the lower
            one corrected for the number of attacks tried.
    """

    run: AttackRun
    reached: tuple[float, ...]
    innocents: tuple[str, ...]
    expected: float
    over: Comparison

    @property
    def beaten(self) -> bool:
        """Whether the true trigger surely stands out, and by more than the policy's lift."""
        return self.over.holds


def is_telling(run: AttackRun, untriggered: AttackRun | None, policy: Policy) -> bool:
    """Whether placebos can tell anything of an attack on the defended model.

    Not where it cannot reach the policy's lift, and not at an eps where the same model is taken
    to the target without the trigger as well: there everything works, and shares are compressed.
    """
    controls = [run.delta_only, None if untriggered is None else untriggered.asr]
    saturated = any(c.value > policy.saturation for c in controls if c is not None)
    return run.asr.high >= policy.lift and not saturated


def hold_against_placebos(case: Case, run: AttackRun) -> PlaceboNull | None:
    """Hold an attack on the defended model against its placebos.

    Returns:
        The comparison; `None` where there are too few placebos, or, for a trigger that covers the
        image or was recovered, no innocent model that met them.
    """
    ours = case.placebo_runs(run, model=run.model)
    order = sorted(ours)
    theirs = {}
    for baseline in case.references:
        runs = case.placebo_runs(run, model=baseline.model)
        twin = case.same_attack(run, model=baseline.model)
        if twin is not None and runs.keys() >= ours.keys():
            theirs[baseline.model] = Reached(twin.asr, tuple(runs[k].asr for k in order))
    if len(ours) < FEWEST_PLACEBOS or not (case.one_of_many or theirs):
        return None
    policy = case.policy
    prediction = predict(
        Reached(run.asr, tuple(ours[k].asr for k in order)),
        tuple(theirs.values()),
        innocents_differ=policy.placebo_spread if case.one_of_many else policy.placebo_spread_wide,
    )
    low = run.asr.value - prediction.bound(case.confidence(len(case.attacks)), upper=True)
    value = run.asr.value - prediction.expected
    return PlaceboNull(
        run=run,
        reached=tuple(ours[k].asr.value for k in order),
        innocents=tuple(theirs),
        expected=prediction.expected,
        over=Comparison(
            name="lift over placebos",
            kind=f"lift ({run.mode})",
            eps=run.eps,
            against="placebos",
            value=value,
            low=low,
            high=run.asr.value - prediction.bound(case.confidence(), upper=False),
            limit=policy.lift,
            holds=low > 0.0 and value > policy.lift,
        ),
    )


@dataclass(frozen=True)
class Reached:
    """What one model is taken to the target by: the true trigger, and each placebo, in order."""

    trigger: Rate
    placebos: tuple[Rate, ...]


@dataclass(frozen=True)
class Prediction:
    """What the true trigger would reach on a model without a backdoor.

    Attributes:
        deviate: Its probit, expected.
        spread: Standard error of what is seen less that, in deviates.
        n_placebos: Placebos the spread is from.
    """

    deviate: float
    spread: float
    n_placebos: int

    @property
    def expected(self) -> float:
        """The share of images that is expected."""
        return share_of_probit(self.deviate)

    def bound(self, confidence: float, *, upper: bool) -> float:
        """Return a two-sided prediction bound (Hahn 1969) of one more draw, as a share."""
        t = float(special.stdtrit(self.n_placebos - 1, (1.0 + confidence) / 2.0))
        return share_of_probit(self.deviate + (t if upper else -t) * self.spread)


def predict(model: Reached, innocents: Sequence[Reached], *, innocents_differ: float) -> Prediction:
    """Predict what the true trigger reaches on a model if to it, too, it is one of many.

    Args:
        model: What it is taken to the target by; of the true trigger, the sampling error alone
            is used.
        innocents: The same of innocent models, placebos in the same order. None, where to an
            innocent model the trigger is no more than its placebos are.
        innocents_differ: How much innocent models differ in what the trigger does beyond its
            placebos: standard deviation, in deviates.
    """
    gaps = [
        _deviate(reached) - _mean([_deviate(other.placebos[k]) for other in innocents])
        for k, reached in enumerate(model.placebos)
    ]
    base = _mean([_deviate(other.trigger) for other in innocents])
    among = float(np.std(gaps, ddof=1))
    # One more draw spreads as the placebos do, or by its own sampling error where that is larger
    # (few images; a share near 0 or 1), and the mean of the placebos as they do over their number.
    sampling = hypot(
        _standard_error(model.trigger),
        sqrt(sum(_standard_error(other.trigger) ** 2 for other in innocents))
        / max(len(innocents), 1),
    )
    one_more = hypot(max(among, sampling), among / sqrt(len(gaps)))
    models = innocents_differ * sqrt(1.0 + 1.0 / max(len(innocents), 1))
    return Prediction(base + float(np.mean(gaps)), hypot(one_more, models), len(gaps))


def _standard_error(rate: Rate) -> float:
    """Return that of a rate's deviate, by the delta method."""
    share = (rate.successes + 0.5) / (rate.total + 1.0)
    density = exp(-(float(special.ndtri(share)) ** 2) / 2.0) / sqrt(2.0 * pi)
    return sqrt(share * (1.0 - share) / rate.total) / density


def _deviate(rate: Rate) -> float:
    return probit(rate.value, rate.total)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
