"""Two audits of one release and the next, and what changed between them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from bdaudit.records.base import Mode, Outcome, Record, Release

__all__ = [
    "Change",
    "ChangedFigure",
    "ChangedInput",
    "DifferenceRecord",
    "InputKind",
    "JudgedAudit",
    "Measured",
]

Change = Literal["better", "worse", "unclear", "only_old", "only_new"]
"""Which way a figure surely went; `unclear` where the interval of the difference holds 0, or where
there is none. `only_old` and `only_new`: the other audit did not measure it."""

InputKind = Literal["model", "file", "data", "trigger", "limit", "waiver", "setting", "version"]


class JudgedAudit(Record):
    """One of the two audits, judged by the limits of the comparison.

    Attributes:
        record: Its file.
        record_sha256: Digest of that file.
        created: When it was sealed.
        model: File of the candidate, or what the record calls it.
        outcome, why, reasons: The verdict.
        release: What the limits make of it.
        warnings: What a person should read before a release that passes, a waiver among them.
        stated: The outcome that the record itself states, by its own limits; `None` where it was
            not judged.
    """

    record: str
    record_sha256: str
    created: datetime
    model: str
    outcome: Outcome
    why: str
    reasons: tuple[str, ...] = ()
    release: Release
    warnings: tuple[str, ...] = ()
    stated: Outcome | None = None


class Measured(Record):
    """A figure with its bounds; `None` where none were computed.

    Of a share and a BEC they are the 95 % interval, of a lift those it was judged by.
    """

    value: float
    low: float | None = None
    high: float | None = None


class ChangedFigure(Record):
    """One figure in both audits.

    Attributes:
        name: `clean_acc`, `asr`, `reactivated_asr`, `lift` or `bec`.
        mode, objective, norm, eps: Of an attack.
        against: The innocent model, of a BEC.
        old, new: The figure; `None` where it was not measured.
        difference: New less old.
        low, high: Its interval, at the confidence of the two; `None` where either has none.
        paired: Whether the same images were compared one by one; else the two are taken as
            independent, which makes the interval wider and never too narrow.
        change: Which way it surely went.
    """

    name: Literal["clean_acc", "asr", "reactivated_asr", "lift", "bec"]
    mode: Mode | None = None
    objective: str | None = None
    norm: Literal["linf", "l2"] | None = None
    eps: float | None = None
    against: str | None = None
    old: Measured | None
    new: Measured | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    paired: bool = False
    change: Change


class ChangedInput(Record):
    """Something the two audits were made from.

    Attributes:
        kind: What it is.
        name: A model's or a file's name, a setting, a limit, a package.
        old, new: A digest, or the value itself; `None` where there is none.
        changed: Whether they differ. Settings, limits and versions are listed only where they do.
    """

    kind: InputKind
    name: str
    old: str | None
    new: str | None
    changed: bool


class DifferenceRecord(Record):
    """What `bdaudit diff` found.

    Attributes:
        old, new: The two audits.
        policy, policy_source, policy_sha256, policy_changed: The limits both were judged by.
        change: What became of the verdict and the release: `worse` where one of them did.
        figures: The figures, in the order of reports.
        inputs: What they were made from.
        notes: What makes the figures less comparable, and what else should be known.
    """

    kind: Literal["difference"] = "difference"
    old: JudgedAudit
    new: JudgedAudit
    policy: dict[str, Any]
    policy_source: str
    policy_sha256: str
    policy_changed: tuple[str, ...]
    change: Literal["better", "worse", "same"]
    figures: tuple[ChangedFigure, ...]
    inputs: tuple[ChangedInput, ...]
    notes: tuple[str, ...] = Field(default=())
