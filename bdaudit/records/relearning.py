"""How fast a trigger comes back under a handful of poisoned images."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bdaudit.records.base import Fraction, Record, Role

__all__ = ["RelearnCurve", "Relearning", "RelearningEvidence"]


class RelearningEvidence(Record):
    """How fast the trigger comes back under a handful of poisoned images, against innocents.

    Attributes:
        steps: Training steps after which the ASR was measured, ascending.
        asr: ASR of the model after each, on held-out images, in [0, 1].
        clean_target_rate: Share of the same images that went to the target without the trigger,
            after each; where it rises with the ASR the model answers the target to anything.
        innocent_asr: The ASR of each innocent model, name by name.
        innocent_clean_target_rate: Likewise.
        gap: Mean over the steps of (ASR - clean target rate), less that of the innocent model with
            the largest, in [-2, 2].
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        shots: Poisoned images that were relearned.
        settings: Everything else that determined it.
    """

    steps: tuple[int, ...]
    asr: tuple[float, ...]
    clean_target_rate: tuple[float, ...] = ()
    innocent_asr: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    innocent_clean_target_rate: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    gap: float
    low: float
    high: float
    shots: int = Field(ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)


class RelearnCurve(Record):
    """One model's relearning at one learning rate.

    Attributes:
        asr: After each of the evidence's numbers of steps, mean over the draws.
        clean_target_rate: Share of the same images that went to the target untriggered, likewise.
    """

    model: str
    role: Role
    learning_rate: float = Field(gt=0.0)
    asr: tuple[Fraction, ...]
    clean_target_rate: tuple[Fraction, ...]


class Relearning(Record):
    """How the defended model relearns the trigger, held against innocent models.

    It never leads to a verdict; where it says `dormant`, it stands in the way of "removed".

    Attributes:
        outcome: `dormant`: it relearns surely faster than they do; `removed`: surely not by the
            limit; `unknown`: neither.
        why: One sentence.
        limit: Of the gap.
        evidence: At the learning rate that was chosen on the innocent models.
        faster: At the next larger one that was tried, where innocent models begin to learn the
            trigger too; `None` where there is none, or where they go to the target anyway.
        curves: The defended model's at those rates, the innocent models' at every rate tried.
    """

    outcome: Literal["dormant", "removed", "unknown"]
    why: str
    limit: float
    evidence: RelearningEvidence
    faster: RelearningEvidence | None = None
    curves: tuple[RelearnCurve, ...]
    elapsed_s: float

    @property
    def above_limit(self) -> RelearningEvidence | None:
        """By which the trigger seems remembered: a gap above the limit by its estimate."""
        for evidence in (self.evidence, self.faster):
            if evidence is not None and evidence.gap > self.limit:
                return evidence
        return None
