"""From a verdict to a release: what the policy makes of it, and of the files to be released."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from bdaudit.foundation.statistics import PairedDifference, paired_difference
from bdaudit.records import AuditRecord, FileDigest, Outcome, Release
from bdaudit.records.verdict import WAIVED
from bdaudit.verdict.policy import Policy
from bdaudit.verdict.waivers import find_waiver

__all__ = ["Decision", "decide_release", "match_files"]

_NO_RATE_COUNTS = (
    "answers_change",
    "answers_depend_on_batch",
    "clean_accuracy_near_chance",
    "labels_do_not_match",
)
"""Errors that leave no rate worth anything, that of a wanted trigger included. "Active" is said in
spite of them, since it forbids a release; where it lets one pass they have to be heard."""

_WANTED = (
    "the policy expects the trigger to work: whoever knows it chooses what the model answers "
    '(expect = "active")'
)


@dataclass(frozen=True)
class Decision:
    """What becomes of a release.

    Attributes:
        release: `pass`, `fail`, or `inconclusive`, which does not pass either.
        reasons: What forbids it beside the outcome of the audit.
        warnings: What a person should read before a release that passes.
    """

    release: Release
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def decide_release(
    record: AuditRecord,
    outcome: Outcome,
    policy: Policy,
    *,
    against: Sequence[str] = (),
    today: date | None = None,
) -> Decision:
    """Return whether a candidate of this outcome may be released.

    Args:
        record: The audit.
        outcome: Its verdict by `policy`.
        policy: The limits.
        against: Further reasons that forbid it, such as files that were not audited; no waiver
            accepts those.
        today: On which waivers must hold; `None` takes the day it is, in UTC.
    """
    decision = _by_the_rules(record, outcome, policy, against)
    if decision.release == "pass" or not policy.waivers:
        return decision
    today = today or datetime.now(UTC).date()
    waiving = find_waiver(policy.waivers, record.files_of("defended"), today=today)
    if waiving.accepted and not against and not list(_not_allowed(record, policy)):
        what = decision.reasons or (f"the verdict is {outcome}",)
        accepted = [
            f"{WAIVED} {waiver.text}; without it this would not pass: {'; '.join(what)}"
            for waiver in waiving.accepted
        ]
        return Decision("pass", (), (*accepted, *decision.warnings))
    if waiving.ended:
        ended = [f"the waiver has ended: {waiver.text}" for waiver in waiving.ended]
        return Decision("fail", (*decision.reasons, *ended), decision.warnings)
    return decision


def _by_the_rules(
    record: AuditRecord, outcome: Outcome, policy: Policy, against: Sequence[str]
) -> Decision:
    reasons = [*against, *_not_allowed(record, policy)]
    warnings = list(_relearning_warnings(record, outcome))
    if policy.expect == "active":
        reasons += _wanted_in_vain(record, outcome, policy)
    else:
        warnings = [*_bec_warnings(record, policy), *warnings]
    beside = _unaudited(record)
    if beside is not None:
        (reasons if policy.unaudited_weights == "fail" else warnings).append(beside)
    loss = _clean_acc_loss(record, policy)
    if loss is None and policy.clean_acc_loss == "fail":
        reasons.append("the loss of clean accuracy against the original was not measured")
    elif loss is not None and loss.value > policy.max_clean_acc_loss:
        surely = loss.low > policy.max_clean_acc_loss
        text = (
            f"clean accuracy is {_points(loss.value)} below the original's (between "
            f"{_points(loss.low)} and {_points(loss.high)}; limit "
            f"{_points(policy.max_clean_acc_loss)})"
        )
        (reasons if surely and policy.clean_acc_loss == "fail" else warnings).append(text)
    if outcome not in (policy.expect, "inconclusive") or reasons:
        return Decision("fail", tuple(reasons), tuple(warnings))
    if outcome == policy.expect:
        if outcome == "active":
            warnings.insert(0, _WANTED)
        return Decision("pass", (), tuple(warnings))
    if policy.inconclusive == "warn":
        what = "the wanted trigger works" if policy.expect == "active" else "the backdoor is gone"
        loud = f"the audit could not tell whether {what}; the policy lets it pass"
        return Decision("pass", (), (loud, *warnings))
    return Decision("inconclusive", (), tuple(warnings))


def match_files(record: AuditRecord, released: Sequence[FileDigest]) -> Iterator[str]:
    """Return why `released` are not the files whose audit `record` is; nothing when they are.

    Every one must be a file of the defended model as it was audited, and every file of that model
    must be among them.
    """
    audited = {f.sha256: f for f in record.files_of("defended")}
    if not audited:
        yield (
            "the record holds no digest of the candidate (it was only queried, or passed in "
            "memory), "
            "so it says nothing about these files"
        )
        return
    other_roles = {f.sha256: f.role for f in record.inputs if f.role != "defended"}
    for file in released:
        if file.sha256 in audited:
            continue
        known = ", ".join(f"{f.path} {f.sha256[:12]}" for f in audited.values())
        role = other_roles.get(file.sha256)
        what = f"is this audit's {role}, not" if role else "is not"
        yield f"{file.path} (sha256 {file.sha256[:12]}) {what} what was audited ({known})"
    missing = audited.keys() - {file.sha256 for file in released}
    for file in audited.values():
        if file.sha256 in missing and len(missing) < len(audited):
            yield f"the audited candidate also consists of {file.path}, which is not given"


def _wanted_in_vain(record: AuditRecord, outcome: Outcome, policy: Policy) -> Iterator[str]:
    """Return why a trigger that is active is not yet the wanted one at work."""
    if record.trigger.recovered:
        yield (
            "the policy expects a wanted trigger, and the one audited was recovered from the "
            "original; pass the wanted one with --trigger"
        )
    defended = record.defended
    if outcome != "active" or defended is None:
        return
    if defended.asr.low < policy.min_original_asr:
        yield (
            f"the wanted trigger takes {100 * defended.asr.value:.1f}% of images to the target "
            f"(surely {100 * defended.asr.low:.1f}%); {100 * policy.min_original_asr:g}% are "
            "needed (min_original_asr)"
        )
    if defended.asr.total < policy.min_held_out:
        yield (
            f"the wanted trigger was tried on {defended.asr.total} held-out images; "
            f"{policy.min_held_out} are needed (min_held_out)"
        )
    for diagnostic in record.diagnostics:
        if diagnostic.severity == "error" and diagnostic.code in _NO_RATE_COUNTS:
            yield f"{diagnostic.code}: {diagnostic.message}"


def _not_allowed(record: AuditRecord, policy: Policy) -> Iterator[str]:
    if policy.allowed_sha256 is None:
        return
    audited = record.files_of("defended")
    if not audited:
        yield "the policy allows certain files only, and the candidate's digest is not known"
    for file in audited:
        if file.sha256 not in policy.allowed_sha256:
            yield f"{file.path} (sha256 {file.sha256[:12]}) is not among the allowed files"


def _unaudited(record: AuditRecord) -> str | None:
    about = record.about_weights()
    if about is None:
        return None
    return (
        f"{about}: whoever loads the file may run those. Release a file with the audited weights "
        'alone, or let the policy say unaudited_weights = "allow"'
    )


def _bec_warnings(record: AuditRecord, policy: Policy) -> Iterator[str]:
    if policy.bec_warning is None:
        return
    for bec in record.bec:
        if bec.value is not None and bec.value > policy.bec_warning:
            yield (
                f"BEC against {bec.reference} is {bec.value:.2f} (warning above "
                f"{policy.bec_warning:g}): much of the backdoor circuit is still there"
            )
    if not any(bec.value is not None for bec in record.bec):
        yield f"BEC was not measured: {record.bec_missing or 'undefined'}"


def _relearning_warnings(record: AuditRecord, outcome: Outcome) -> Iterator[str]:
    """Return where relearning tells otherwise than a verdict that it leaves as it is."""
    if outcome == "removed" and record.relearning_missing is not None:
        yield f"relearning was not measured: {record.relearning_missing}"
    if record.relearning is None:
        return
    asleep = outcome in ("dormant", "active")
    contradicts = {"dormant": outcome == "removed", "removed": asleep, "unknown": False}
    if contradicts[record.relearning.outcome]:
        yield (
            f"relearning does not agree with the verdict, which stays {outcome}: "
            f"{record.relearning.why}"
        )


def _clean_acc_loss(record: AuditRecord, policy: Policy) -> PairedDifference | None:
    original, defended = record.original, record.defended
    if original is None or defended is None:
        return None
    return paired_difference(
        original.clean_acc.outcomes(),
        defended.clean_acc.outcomes(),
        confidence=1.0 - 2.0 * (1.0 - policy.confidence),
    )


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"
