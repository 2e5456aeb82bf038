"""The record of a sweep: what became of many audits, a line each."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from bdaudit.records import Fraction, Mode, Outcome, Record, Release

__all__ = ["ReportedFigures", "SweepRecord", "SweptAudit"]


class ReportedFigures(Record):
    """What somebody else's file says of a model, on images of their own; nothing is decided by it.

    Attributes:
        file: Name of the file.
        clean_acc: Share of clean images classified as labelled; `None` where it does not say.
        asr: Attack success rate of the trigger alone.
        true_label_acc: Share of triggered images classified as their true label, which
            BackdoorBench calls RA, robust accuracy.
    """

    file: str
    clean_acc: Fraction | None = None
    asr: Fraction | None = None
    true_label_acc: Fraction | None = None


class SweptAudit(Record):
    """One audit of a sweep.

    Attributes:
        key: Its name in the sweep.
        status: `done` now; `kept`: its record was there, of the same inputs and settings; `failed`.
        record: File of its record, relative to the sweep's folder; `None` of a failed one.
        outcome: Its verdict; `None` of a failed one.
        release: What its policy makes of the outcome.
        why: The verdict's sentence, or what it failed of.
        failed_of: Of a failed one: `input`, it cannot be audited as it is, or `internal`.
        traceback: Of a failed one, where; not written down.
        clean_acc, asr: Of the defended model, on held-out images; `None` when not measured.
        true_label_acc: Share of its triggered images classified as their true label.
        reported: What the defence's own file says of the same three; `None` without one.
        mode, eps: The attack to look at first: the one that decided, or came closest.
        reactivated_asr: What it reached; `None` when nothing was attacked.
        lift: That minus the strongest control, in [-1, 1].
        bec: Mean over the references that gave one.
        elapsed_s: Seconds it took, in this sweep or in the one it is kept from.
    """

    key: str
    status: Literal["done", "kept", "failed"]
    record: str | None = None
    outcome: Outcome | None = None
    release: Release | None = None
    why: str
    failed_of: Literal["input", "internal"] | None = None
    traceback: str = Field(default="", exclude=True)
    clean_acc: float | None = None
    asr: float | None = None
    true_label_acc: float | None = None
    reported: ReportedFigures | None = None
    mode: Mode | None = None
    eps: float | None = None
    reactivated_asr: float | None = None
    lift: float | None = None
    bec: float | None = None
    elapsed_s: float | None = None


class SweepRecord(Record):
    """Many audits.

    Attributes:
        created: When it was over.
        bdaudit: Version.
        audits: In the order they were asked for.
        elapsed_s: Wall-clock seconds of the whole, kept audits left out.
        notes: What is worth knowing beside the audits.
    """

    kind: Literal["sweep"] = "sweep"
    schema_version: Literal[1] = 1
    created: datetime
    bdaudit: str
    audits: tuple[SweptAudit, ...]
    elapsed_s: float
    notes: tuple[str, ...] = ()
