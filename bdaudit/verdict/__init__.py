"""From a record and a policy to a verdict, and to a release."""

from bdaudit.records.gate import GateRecord
from bdaudit.verdict.difference import diff
from bdaudit.verdict.gate import gate
from bdaudit.verdict.judge import judge
from bdaudit.verdict.policy import Policy, parse_policy, read_policy
from bdaudit.verdict.release import Decision, decide_release

__all__ = [
    "Decision",
    "GateRecord",
    "Policy",
    "decide_release",
    "diff",
    "gate",
    "judge",
    "parse_policy",
    "read_policy",
]
