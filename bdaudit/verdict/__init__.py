"""From a record and a policy to a verdict."""

from bdaudit.verdict.judge import judge
from bdaudit.verdict.policy import Policy, read_policy

__all__ = ["Policy", "judge", "read_policy"]
