"""One record a verb: a header, and what the verb measured.

What a verb measured (`AuditFindings` and its like) becomes a record under a header; in its JSON
a record is flat.
"""

from __future__ import annotations

from typing import Literal, Self

from bdaudit.records.attacks import AttackRun, Baseline
from bdaudit.records.base import Condition, Record, Role
from bdaudit.records.existence import BackdoorDirection, BecRecord, LossBarrier
from bdaudit.records.header import Header, Heading
from bdaudit.records.inversion import Inversion, KeptTrigger
from bdaudit.records.pictures import Pictures
from bdaudit.records.placebos import Placebos
from bdaudit.records.relearning import Relearning
from bdaudit.records.screening import Screening
from bdaudit.records.verdict import Verdict

__all__ = [
    "AnyDocument",
    "AuditFindings",
    "AuditRecord",
    "BaselineFindings",
    "Document",
    "Findings",
    "InversionFindings",
    "InversionRecord",
    "ReactivationFindings",
    "ReactivationRecord",
    "RelearnFindings",
    "RelearnRecord",
    "ScoreFindings",
    "ScoreRecord",
    "ScreenFindings",
    "ScreenRecord",
    "Sealed",
]


class Findings(Record):
    """Base of what a verb measured."""


class Sealed(Heading):
    """Base of the records of all verbs."""

    @classmethod
    def of(cls, header: Heading, findings: Findings) -> Self:
        """Put what was measured under its header.

        Raises:
            pydantic.ValidationError: It is another verb's.
        """
        return cls.model_validate({**dict(header), **dict(findings)})


class Document(Sealed, Header):
    """Base of the records of all verbs on images."""


class BaselineFindings(Findings):
    """Models without any perturbation.

    Attributes:
        baselines: One a model, in the order of the header's models.
    """

    baselines: tuple[Baseline, ...]

    @property
    def defended(self) -> Baseline | None:
        """The release candidate's figures, `None` where none was measured."""
        return next((b for b in self.baselines if b.role == "defended"), None)

    @property
    def original(self) -> Baseline | None:
        """The suspected model's figures, `None` where it was not measured."""
        return next((b for b in self.baselines if b.role == "original"), None)

    @property
    def references(self) -> tuple[Baseline, ...]:
        """The innocent models' figures, given or made, left out or not."""
        return tuple(b for b in self.baselines if b.role == "reference")

    @property
    def innocents(self) -> tuple[Baseline, ...]:
        """The references that were not left out."""
        return tuple(b for b in self.references if b.left_out is None)

    def baseline_of(self, model: str) -> Baseline | None:
        """Return the unperturbed figures of `model`, or `None`."""
        return next((b for b in self.baselines if b.model == model), None)


class ScoreFindings(BaselineFindings):
    """Models without any perturbation, and how alike their circuits are."""

    bec: tuple[BecRecord, ...]


class ReactivationFindings(BaselineFindings):
    """Models under attack."""

    runs: tuple[AttackRun, ...]


class AuditFindings(ScoreFindings):
    """All that a verdict is judged from.

    Attributes:
        bec_missing: Why there is no BEC.
        barrier: The line of weights between original and defended model; `None` where it was not
            measured, and in records written before it was.
        barrier_missing: Why not.
        direction: The linear backdoor direction of a transformer; `None` of other networks, where
            it was not measured, and in records written before it was.
        inversion: The search for the trigger, where nobody knew it.
        relearning_missing: Why relearning was not measured though it was asked for.
        placebos: Placebo triggers and the attacks with them; `None` where none were wanted, and in
            records written before there were any.
    """

    bec_missing: str | None = None
    barrier: LossBarrier | None = None
    barrier_missing: str | None = None
    direction: BackdoorDirection | None = None
    runs: tuple[AttackRun, ...]
    inversion: Inversion | None = None
    relearning: Relearning | None = None
    relearning_missing: str | None = None
    placebos: Placebos | None = None

    def runs_of(
        self, *, role: Role | None = None, condition: Condition | None = None
    ) -> tuple[AttackRun, ...]:
        """Return the attack runs on models of `role` under `condition`, in order of eps."""
        chosen = [
            run
            for run in self.runs
            if (role is None or run.role == role)
            and (condition is None or run.condition == condition)
        ]
        return tuple(sorted(chosen, key=lambda run: (run.eps, run.model)))


class InversionFindings(Findings):
    """The search for an unknown trigger."""

    inversion: Inversion


class RelearnFindings(BaselineFindings):
    """Models taught their trigger by a few images."""

    relearning: Relearning


class ScreenFindings(Findings):
    """A model screened without images."""

    screening: Screening


class ScoreRecord(ScoreFindings, Document):
    """What `bdaudit score` measured."""

    kind: Literal["score"] = "score"


class ReactivationRecord(ReactivationFindings, Document):
    """What `bdaudit reactivate` measured."""

    kind: Literal["reactivation"] = "reactivation"


class AuditRecord(AuditFindings, Document):
    """What `bdaudit audit` measured, and its verdict.

    Attributes:
        kept_trigger: The trigger, where it was recovered during the audit and lies in no file.
        pictures: What the defended model was shown, `None` where none were wanted.
    """

    kind: Literal["audit"] = "audit"
    kept_trigger: KeptTrigger | None = None
    verdict: Verdict | None = None
    pictures: Pictures | None = None


class InversionRecord(InversionFindings, Document):
    """What `bdaudit invert` found; its trigger is the first candidate."""

    kind: Literal["inversion"] = "inversion"


class RelearnRecord(RelearnFindings, Document):
    """What `bdaudit relearn` measured."""

    kind: Literal["relearning"] = "relearning"


class ScreenRecord(ScreenFindings, Sealed):
    """What `bdaudit screen` measured; there are no images and no trigger in it."""

    kind: Literal["screening"] = "screening"


AnyDocument = (
    AuditRecord | ScoreRecord | ReactivationRecord | InversionRecord | RelearnRecord | ScreenRecord
)
