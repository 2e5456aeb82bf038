"""Placebo triggers: what was drawn, what was kept and why, and the attacks with them."""

from __future__ import annotations

from pydantic import Field, model_validator

from bdaudit.records.attacks import AttackRun
from bdaudit.records.base import Fraction, Record
from bdaudit.records.pictures import Png

__all__ = ["Placebo", "Placebos"]


class Placebo(Record):
    """A pattern as strong as the true trigger that nobody trained a model on.

    Attributes:
        kind: What was drawn: "smooth field", "grating", "patch", ... or the name of a file.
        sha256: Digest over the pattern and the target, as of a trigger.
        l2: Mean L2 norm of what it changes, in pixel units.
        original: Share of the craft images that it alone takes to their targets on the original.
        innocent: The same on the innocent model where that is largest; `None` without any.
        shift: How far it moves innocent models toward the target by itself: the mean change of
            the target's score less the best other one, over its spread on clean images.
        why_not: Why it does not serve; `None` where it does.
        png: The pattern on mid-grey, `None` where no pictures were wanted.
    """

    kind: str
    sha256: str
    l2: float = Field(ge=0.0)
    original: Fraction
    innocent: Fraction | None = None
    shift: float | None = None
    why_not: str | None = None
    png: Png | None = None


class Placebos(Record):
    """The placebos of an audit.

    Attributes:
        kept: Those that attacks were made with; an attack's `placebo` is an index into it.
        refused: The others that were drawn.
        l2: Mean L2 norm of what the true trigger changes.
        shift: How far the true trigger moves innocent models, as of each placebo.
        missing: Why there are none, or too few; `None` where there are enough.
        runs: Attacks under the condition `placebo`, on the defended model and on innocent ones.
    """

    kept: tuple[Placebo, ...] = ()
    refused: tuple[Placebo, ...] = ()
    l2: float = Field(ge=0.0)
    shift: float | None = None
    missing: str | None = None
    runs: tuple[AttackRun, ...] = ()

    @model_validator(mode="after")
    def _runs_name_placebos(self) -> Placebos:
        for run in self.runs:
            if run.condition != "placebo" or run.placebo is None:
                raise ValueError("an attack among the placebos is under another condition")
            if run.placebo >= len(self.kept):
                raise ValueError(f"an attack names placebo {run.placebo} of {len(self.kept)}")
        return self
