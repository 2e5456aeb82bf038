"""The controls on the defended model itself: would it answer the target without the backdoor?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bdaudit.records import AttackRun, Comparison
from bdaudit.verdict.case import Case
from bdaudit.verdict.doubts import NotMeasured
from bdaudit.verdict.nulls import Control, control

__all__ = ["SameModel", "hold_against_same_model"]


@dataclass(frozen=True)
class SameModel:
    """The trigger alone, the same delta without the trigger, and the attack without the trigger.

    Every one of them must be beaten for "dormant", so no correction is due for their number (an
    intersection-union test).
    """

    controls: tuple[Control, ...]
    missing: tuple[NotMeasured, ...]

    @property
    def lifts(self) -> tuple[Comparison, ...]:
        """The re-activated ASR over each of them."""
        return tuple(c.lift for c in self.controls)

    @cached_property
    def beaten(self) -> bool:
        """Whether the re-activated ASR is surely above every one of them."""
        return all(lift.holds for lift in self.lifts)

    @cached_property
    def exceeded(self) -> bool:
        """Whether it is surely above every one of them at all, by however little."""
        return all(lift.low is not None and lift.low > 0.0 for lift in self.lifts)

    @cached_property
    def least_beaten(self) -> Comparison | None:
        """The lift that is least surely above the limit, `None` where all surely are."""
        left = [lift for lift in self.lifts if not lift.holds]
        return min(left, key=lambda c: -1.0 if c.low is None else c.low, default=None)


def hold_against_same_model(case: Case, run: AttackRun) -> SameModel:
    """Hold an attack on the defended model against the controls on the same model."""
    untriggered = case.same_attack(run, model=run.model, condition="no_trigger")
    rates = {
        "trigger alone on defended": None if case.defended is None else case.defended.asr,
        "same delta without the trigger": run.delta_only,
        "attack without the trigger": None if untriggered is None else untriggered.asr,
    }
    missing = []
    if run.delta_only is None:
        missing.append(NotMeasured("delta_only", run))
    if untriggered is None:
        missing.append(NotMeasured("no_trigger", run))
    return SameModel(
        controls=tuple(
            control(case, run, against, rate, n_tries=len(case.attacks))
            for against, rate in rates.items()
            if rate is not None
        ),
        missing=tuple(missing),
    )
