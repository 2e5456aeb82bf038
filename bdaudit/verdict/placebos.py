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
more than its placebos are: then d(x) = z_defended(x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from scipy import stats

from bdaudit.foundation.statistics import probit, share_of_probit
from bdaudit.records import AttackRun, Comparison, Rate
from bdaudit.verdict.case import Case
from bdaudit.verdict.policy import Policy

__all__ = ["FEWEST_PLACEBOS", "PlaceboNull", "hold_against_placebos", "is_telling"]

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
        image, no innocent model that met them.
    """
    ours = case.placebo_runs(run, model=run.model)
    theirs = {
        baseline.model: runs
        for baseline in case.references
        if (runs := case.placebo_runs(run, model=baseline.model)).keys() >= ours.keys()
        and case.same_attack(run, model=baseline.model) is not None
    }
    if len(ours) < FEWEST_PLACEBOS or (case.wide and not theirs):
        return None
    innocent_true = [case.same_attack(run, model=name) for name in theirs]
    order = sorted(ours)
    gaps = [
        _deviate(ours[k].asr) - _mean([_deviate(runs[k].asr) for runs in theirs.values()])
        for k in order
    ]
    base = _mean([_deviate(twin.asr) for twin in innocent_true if twin is not None])
    predicted = base + float(np.mean(gaps))
    spread = _spread_of_one_more(case, run, gaps, [t.asr for t in innocent_true if t is not None])
    expected = share_of_probit(predicted)

    def beyond(confidence: float, sign: float) -> float:
        t = float(stats.t.ppf((1.0 + confidence) / 2.0, len(gaps) - 1))
        return run.asr.value - share_of_probit(predicted + sign * t * spread)

    low = beyond(case.confidence(len(case.attacks)), +1.0)
    value = run.asr.value - expected
    return PlaceboNull(
        run=run,
        reached=tuple(ours[k].asr.value for k in order),
        innocents=tuple(theirs),
        expected=expected,
        over=Comparison(
            name="lift over placebos",
            kind=f"lift ({run.mode})",
            eps=run.eps,
            against="placebos",
            value=value,
            low=low,
            high=beyond(case.confidence(), -1.0),
            limit=case.policy.lift,
            holds=low > 0.0 and value > case.policy.lift,
        ),
    )


def _spread_of_one_more(
    case: Case, run: AttackRun, gaps: Sequence[float], innocents: Sequence[Rate]
) -> float:
    """Return the standard error of d(t) - mean d(p), in deviates.

    One more draw spreads as the placebos do, or by its own sampling error where that is larger
    (few images; a share near 0 or 1), and the mean of the placebos as they do over their number.
    """
    among = float(np.std(gaps, ddof=1))
    sampling = hypot(
        _standard_error(run.asr),
        sqrt(sum(_standard_error(rate) ** 2 for rate in innocents)) / max(len(innocents), 1),
    )
    one_more = hypot(max(among, sampling), among / sqrt(len(gaps)))
    policy = case.policy
    differ = policy.placebo_spread_wide if case.wide else policy.placebo_spread
    models = differ * sqrt(1.0 + 1.0 / max(len(innocents), 1))
    return hypot(one_more, models)


def _standard_error(rate: Rate) -> float:
    """Return that of a rate's deviate, by the delta method."""
    share = (rate.successes + 0.5) / (rate.total + 1.0)
    return sqrt(share * (1.0 - share) / rate.total) / float(stats.norm.pdf(stats.norm.ppf(share)))


def _deviate(rate: Rate) -> float:
    return probit(rate.value, rate.total)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
