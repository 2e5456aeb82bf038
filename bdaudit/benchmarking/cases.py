"""One audited model of known truth: its figures and its verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdaudit.errors import RecordError
from bdaudit.records import AttackRun, AuditRecord, Condition, Outcome, Verdict
from bdaudit.records.benchmark import BenchCase, BenchPoint, QueryCurve, Variant
from bdaudit.records.families import FamilyMember, Truth
from bdaudit.verdict import Policy, judge

__all__ = ["EXPECTED", "Audited", "case_key", "describe_case"]

EXPECTED: dict[Truth, Outcome] = {
    "active": "active",
    "dormant": "dormant",
    "removed": "removed",
    "innocent": "removed",
}
"""The right verdict. In an innocent model there is nothing to wake, which is what removed says."""


@dataclass(frozen=True)
class Audited:
    """A member of a family and the record of its audit.

    Attributes:
        member: Whose truth is known.
        variant: How it was audited.
        record: What the audit measured; `None` where it failed.
        failure: What it failed of.
        file: Where the record is.
    """

    member: FamilyMember
    variant: Variant
    record: AuditRecord | None
    failure: str | None = None
    file: str | None = None

    @property
    def key(self) -> str:
        """Member and variant."""
        return case_key(self.member.name, self.variant)


def case_key(member: str, variant: Variant) -> str:
    """Name a case."""
    return f"{member}--{variant}"


def describe_case(
    audited: Audited, policy: Policy, *, policy_source: str = "defaults"
) -> BenchCase:
    """Judge an audit by `policy` and put its figures side by side with the truth.

    Raises:
        RecordError: The member names no original to be held against.
    """
    member, record = audited.member, audited.record
    if member.original is None:
        raise RecordError(f"{member.name}: names no original that it is held against")
    case = BenchCase(
        key=audited.key,
        member=member.name,
        variant=audited.variant,
        original=member.original,
        attack=member.attack,
        poison_rate=member.poison_rate,
        lineage=member.lineage,
        defense=member.defense,
        truth=member.truth,
        truth_source=member.truth_source,
        record=audited.file,
        outcome=None,
        why=audited.failure or "the audit failed",
    )
    if record is None:
        return case
    verdict = judge(record, policy, policy_source=policy_source)
    defended, original = record.defended, record.original
    peaks = [step.peak_memory_bytes for step in record.steps if step.peak_memory_bytes]
    return case.model_copy(
        update={
            "outcome": verdict.outcome,
            "correct": _is_correct(member.truth, verdict.outcome),
            "why": verdict.why,
            "reasons": verdict.reasons,
            "clean_acc": None if defended is None else defended.clean_acc.value,
            "asr": None if defended is None else defended.asr.value,
            "original_asr": None if original is None else original.asr.value,
            "bec": _mean(b.value for b in record.bec if b.value is not None),
            "points": tuple(_points(record, verdict)),
            "query_curves": tuple(_query_curves(record)),
            "elapsed_s": record.elapsed_s,
            "peak_memory_bytes": max(peaks, default=None),
        }
    )


def _is_correct(truth: Truth, outcome: Outcome) -> bool | None:
    if truth == "unknown" or outcome == "inconclusive":
        return None
    return outcome == EXPECTED[truth]


def _points(record: AuditRecord, verdict: Verdict) -> Iterable[BenchPoint]:
    innocents = _innocents(record)
    for run in record.runs_of(role="defended", condition="trigger"):
        own = [c for c in verdict.lifts if (c.kind, c.eps) == (f"lift ({run.mode})", run.eps)]
        over_innocents = [c.value for c in own if c.against in innocents]
        parts = [
            c.value
            for c in verdict.lifts
            if (c.kind, c.eps) == (f"trigger's part ({run.mode})", run.eps)
        ]
        beaten = [c.value for c in verdict.over_controls(run.mode) if c.eps == run.eps]
        twins = [
            other
            for other in record.runs_of(role="reference", condition="trigger")
            if other.model in innocents and other.attack == run.attack
        ]
        yield BenchPoint(
            mode=run.mode,
            eps=run.eps,
            asr=run.asr.value,
            delta_only=None if run.delta_only is None else run.delta_only.value,
            innocent=max((twin.asr.value for twin in twins), default=None),
            no_trigger=_control(record, run, "no_trigger"),
            noise=_control(record, run, "noise"),
            lift=min(beaten, default=None),
            lift_over_innocents=min(over_innocents, default=None),
            lift_over_own=min((c.value for c in own if c.against not in innocents), default=None),
            part=min(parts, default=None),
            beyond=max(
                (
                    c.value
                    for c in verdict.lifts
                    if (c.kind, c.eps) == (f"one more innocent ({run.mode})", run.eps)
                ),
                default=None,
            ),
            image_queries=run.image_queries,
            gradient_passes=run.gradient_passes,
        )


def _innocents(record: AuditRecord) -> set[str]:
    return {b.model for b in record.innocents}


def _control(record: AuditRecord, run: AttackRun, condition: Condition) -> float | None:
    """Return what the defended model does under another condition; noise has no objective."""
    return next(
        (
            other.asr.value
            for other in record.runs_of(role="defended", condition=condition)
            if (other.mode, other.norm, other.eps) == (run.mode, run.norm, run.eps)
            and (condition == "noise" or other.objective == run.objective)
        ),
        None,
    )


def _query_curves(record: AuditRecord) -> Iterable[QueryCurve]:
    innocents = _innocents(record)
    for run in record.runs:
        if not run.query_curve:
            continue
        points = tuple((point.n_queries, point.asr.value) for point in run.query_curve)
        if run.role == "defended" and run.condition in ("trigger", "no_trigger"):
            yield QueryCurve(of=run.condition, eps=run.eps, points=points)
        elif run.model in innocents and run.condition == "trigger":
            yield QueryCurve(of="innocent", eps=run.eps, points=points)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
