"""Several audits side by side."""

from __future__ import annotations

from typing import Literal

from bdaudit.records import Comparison, Mode, Outcome, Rate, Record, Release

__all__ = ["ComparedModel", "ComparisonRecord", "Neighbour", "Span"]


class Span(Record):
    """Lowest, middle and highest of a coefficient over the references."""

    low: float
    middle: float
    high: float


class ComparedModel(Record):
    """One defended model.

    Attributes:
        name: Of its file, or of its record where files are called alike.
        record: The record's file.
        outcome: Its verdict; `None` when the record was not judged.
        release: What the policy makes of it.
        clean_acc: On all held-out images.
        clean_acc_loss: Against the original, by estimate; below 0 it gained.
        asr: Of the trigger alone.
        reactivated: With the perturbation of the eps that is compared.
        delta_only: Of the same perturbation without the trigger.
        lift: Over the strongest control at that eps.
        bec: Over the references; `None` when it was not measured.
        bec_missing: Why not.
        barrier: How far the clean loss rises on the straight line of weights from the original,
            above the line between the ends; `None` where it was not measured.
        asr_half_way: ASR of the trigger alone in the middle of that line; `None` likewise.
        direction: Mean cosine of the linear backdoor direction with the original's, of a
            transformer; `None` otherwise.
        fidelity: Share of the original's clean accuracy kept, times the share of its ASR that is
            gone, each held within 0 and 1; `None` where the original has no accuracy or no ASR.
        fidelity_reactivated: The same with the re-activated ASR in place of the trigger's alone.
    """

    name: str
    record: str
    outcome: Outcome | None
    release: Release | None
    clean_acc: Rate
    clean_acc_loss: float
    asr: Rate
    reactivated: Rate
    delta_only: Rate | None
    lift: Comparison | None
    bec: Span | None
    bec_missing: str | None
    barrier: float | None = None
    asr_half_way: float | None = None
    direction: float | None = None
    fidelity: float | None = None
    fidelity_reactivated: float | None = None


class Neighbour(Record):
    """A model to compare with: the original, or the innocent ones together.

    Attributes:
        name: Who.
        bec: 1 for the original and 0 for innocent models, by definition of the coefficient.
        asr, asr_high: Of the trigger alone, lowest and highest.
        reactivated, reactivated_high: At the eps that is compared, lowest and highest.
    """

    name: str
    bec: float
    asr: float
    asr_high: float
    reactivated: float | None
    reactivated_high: float | None


class ComparisonRecord(Record):
    """What `bdaudit compare` shows.

    Attributes:
        mode, norm, eps: The attack whose figures are compared; all records have it.
        attack: The same in words.
        models: The best verdict first; among equals the smallest lift.
        original, innocent: What they stand between.
        warnings: In what the records differ, so that their figures are less comparable.
    """

    kind: Literal["comparison"] = "comparison"
    mode: Mode
    norm: Literal["linf", "l2"]
    eps: float
    attack: str
    models: tuple[ComparedModel, ...]
    original: Neighbour
    innocent: Neighbour | None
    warnings: tuple[str, ...]
