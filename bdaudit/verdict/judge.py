"""Judge a record: active, dormant, removed or inconclusive.

Pure functions of a record and a policy; nothing is measured on a model here. The figures are in
`figures.py`, the rules in `rules.py`, and the words in `sentences.py`; docs/verdict.md gives the
rules and why they are as they are.
"""

from __future__ import annotations

from bdaudit.records import AuditRecord, Verdict
from bdaudit.verdict.advice import advise
from bdaudit.verdict.case import Case
from bdaudit.verdict.figures import measure
from bdaudit.verdict.policy import Policy
from bdaudit.verdict.release import decide_release
from bdaudit.verdict.rules import decide
from bdaudit.verdict.sentences import reasons, why

__all__ = ["judge"]


def judge(record: AuditRecord, policy: Policy, *, policy_source: str = "defaults") -> Verdict:
    """Judge `record` by `policy`.

    Args:
        record: A finished audit; a verdict already in it is ignored.
        policy: The limits.
        policy_source: Where the limits came from, for the report.

    Returns:
        The verdict with the sentence why, what stood in the way where it is inconclusive, the
        comparisons that decided, every lift over every null, and what to do next.

    Raises:
        RecordError: A rate that must be compared image by image was stored without its outcomes.
    """
    figures = measure(Case(record, policy))
    finding = decide(figures)
    decision = decide_release(record, finding.outcome, policy)
    return Verdict(
        outcome=finding.outcome,
        why=why(finding, record),
        reasons=reasons(finding),
        deciding=finding.deciding,
        lifts=tuple(c for attack in figures.attacks for c in attack.comparisons),
        telling_eps=figures.telling_eps,
        policy=policy.model_dump(mode="json"),
        policy_source=policy_source,
        policy_sha256=policy.sha256,
        release=decision.release,
        release_reasons=decision.reasons,
        warnings=decision.warnings,
        policy_changed=policy.changed,
        advice=advise(finding, figures, decision.release),
    )
