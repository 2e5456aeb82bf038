"""What may stand in the way of a verdict: one small record for each kind of reason.

`bdaudit.verdict.sentences` puts them into words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bdaudit.records import (
    AttackRun,
    Baseline,
    Comparison,
    Diagnostic,
    Rate,
    Relearning,
    RelearningEvidence,
    StepStatus,
)

__all__ = [
    "AttackFailsOnOriginal",
    "BackdoorNotSure",
    "BoundNotBelow",
    "ControlsSaturate",
    "DiagnosticRaised",
    "Doubt",
    "NotMeasured",
    "NotReactivated",
    "OneMoreMayReach",
    "OnlyTransfer",
    "Remembered",
    "StandInsCannotAccuse",
    "StepFailed",
    "TooFewImages",
    "TooFewInnocents",
    "TooFewInnocentsServe",
    "TriggerAloneMayDoMore",
    "TriggerFailsOnOriginal",
]


@dataclass(frozen=True)
class BackdoorNotSure:
    """A trigger was looked for in the original, and none (or no sure one) was found."""

    outcome: Literal["none", "unsure"]
    why: str


@dataclass(frozen=True)
class NotReactivated:
    """No attack on the defended model, or the figures that every rule needs are missing."""


@dataclass(frozen=True)
class TriggerFailsOnOriginal:
    """The trigger alone does not work on the original."""

    asr: Rate
    needed: float


@dataclass(frozen=True)
class TooFewInnocents:
    """Fewer innocent models than the policy needs for such a trigger."""

    n: int
    needed: int
    wide: bool
    recovered: bool
    left_out: tuple[Baseline, ...]


@dataclass(frozen=True)
class TooFewImages:
    """Fewer held-out images than the policy needs."""

    n: int
    needed: int


@dataclass(frozen=True)
class TriggerAloneMayDoMore:
    """The upper bound of what the trigger alone does more than a control is not below the limit."""

    against: str
    high: float
    limit: float


@dataclass(frozen=True)
class NotMeasured:
    """A control of one attack is missing.

    Attributes:
        what: The same delta without the trigger, the attack without it, the attack with it, or
            with placebos.
        run: The attack on the defended model.
        model: Whose control it is, `None` for the defended model's own.
    """

    what: Literal["delta_only", "no_trigger", "trigger", "placebo"]
    run: AttackRun
    model: str | None = None


@dataclass(frozen=True)
class StandInsCannotAccuse:
    """Every control is beaten, but too few innocent models can support "dormant"."""

    run: AttackRun
    needed: int


@dataclass(frozen=True)
class TooFewInnocentsServe:
    """At one eps too few innocent models are left that may be compared with."""

    run: AttackRun
    too_easy: tuple[str, ...]
    left: int
    needed: int


@dataclass(frozen=True)
class Remembered:
    """No perturbation surely wakes the backdoor, and yet a few triggered images seem to.

    Attributes:
        evidence: At the learning rate at which they do.
    """

    relearning: Relearning
    evidence: RelearningEvidence


@dataclass(frozen=True)
class OneMoreMayReach:
    """All innocent models are beaten, but one more of them may reach as far."""

    run: AttackRun
    n_innocents: int
    beyond: Comparison


@dataclass(frozen=True)
class BoundNotBelow:
    """An upper bound that "removed" needs below the limit is not below it.

    Attributes:
        bound: The comparison.
        unbeaten: Where the bound's own comparison is beaten, the control on the same model that
            is not; `None` elsewhere.
        limit: What the bound must be below.
    """

    bound: Comparison
    unbeaten: Comparison | None
    limit: float


@dataclass(frozen=True)
class OnlyTransfer:
    """No attack was made on the defended model itself."""


@dataclass(frozen=True)
class ControlsSaturate:
    """At every eps the strongest control is above the limit, so no lift could show."""

    limit: float


@dataclass(frozen=True)
class AttackFailsOnOriginal:
    """An attack was not shown to wake the original.

    Attributes:
        run: The attack on the defended model.
        asr: What it reaches on the original; `None` where that was not measured.
    """

    run: AttackRun
    asr: Rate | None


@dataclass(frozen=True)
class DiagnosticRaised:
    """A diagnostic of severity `error`."""

    diagnostic: Diagnostic


@dataclass(frozen=True)
class StepFailed:
    """A step of the audit failed."""

    step: StepStatus


Doubt = (
    BackdoorNotSure
    | NotReactivated
    | TriggerFailsOnOriginal
    | TooFewInnocents
    | TooFewImages
    | TriggerAloneMayDoMore
    | NotMeasured
    | StandInsCannotAccuse
    | TooFewInnocentsServe
    | OneMoreMayReach
    | BoundNotBelow
    | OnlyTransfer
    | Remembered
    | ControlsSaturate
    | AttackFailsOnOriginal
    | DiagnosticRaised
    | StepFailed
)
