"""The verdict and the numbers it leaned on."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bdaudit.records.base import Mode, Outcome, Record, Release

__all__ = ["WAIVED", "Comparison", "Verdict"]

WAIVED = "accepted by waiver"
"""How the warning begins that every report shows of a release that passes by a waiver."""


class Comparison(Record):
    """One number that a verdict leaned on.

    Attributes:
        name: What is compared, in words.
        kind: `active`, `lift`, `strength`, `samples`, ...: the rule it belongs to.
        value, low, high: The estimate and its one-sided bounds at the policy's confidence.
        limit: What it was held against.
        holds: Whether the rule's condition is met.
    """

    name: str
    kind: str
    eps: float | None = None
    against: str | None = None
    value: float
    low: float | None = None
    high: float | None = None
    limit: float
    holds: bool


class Verdict(Record):
    """The answer, why, and the figures that decided it.

    Attributes:
        why: One sentence.
        reasons: For `inconclusive`, everything that stood in the way.
        deciding: The comparisons that decided.
        lifts: Every lift over every null, by eps, deciding or not: of the re-activated ASR (kind
            `lift (MODE)`) and, over innocent models, of the trigger's contribution (`trigger's part
            (MODE)`); and both beyond the bound of what one more innocent model may reach
            (`one more innocent (MODE)`).
        telling_eps: Where, by mode, the attack speaks for "dormant": it rises above every null, or
            above innocent models where relearning brings the trigger back as well.
        policy: The limits that applied, by name.
        policy_source: Where they came from.
        policy_sha256: Digest over the limits themselves, however they were spelled.
        release: What the policy makes of the outcome; `None` in records that do not say.
        release_reasons: What forbids the release beside the outcome itself.
        warnings: What a person should read before a release that passes.
        policy_changed: Names of the limits that are not the default ones; `None` in records that do
            not say.
        advice: What to do next, up to three lines; empty in records that do not say.
    """

    outcome: Outcome
    why: str
    reasons: tuple[str, ...] = ()
    deciding: tuple[Comparison, ...] = ()
    lifts: tuple[Comparison, ...] = ()
    telling_eps: dict[Mode, tuple[float, ...]] = Field(default_factory=dict)
    policy: dict[str, Any]
    policy_source: str
    policy_sha256: str | None = None
    release: Release | None = None
    release_reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    policy_changed: tuple[str, ...] | None = None
    advice: tuple[str, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether the policy expects the trigger to work, since the model carries it on purpose."""
        return self.policy.get("expect") == "active"

    def over_controls(self, mode: Mode | str) -> tuple[Comparison, ...]:
        """Return one comparison for each eps and control of the attacks of one mode.

        Innocent models are beaten by the re-activated ASR or by the trigger's
        contribution; at each eps the way is taken that leaves the nearest of them further behind.
        """
        chosen: list[Comparison] = []
        for eps in dict.fromkeys(c.eps for c in self.lifts):
            here = [c for c in self.lifts if c.eps == eps]
            lifts = [c for c in here if c.kind == f"lift ({mode})"]
            parts = {c.against: c for c in here if c.kind == f"trigger's part ({mode})"}
            over = [c.value for c in lifts if c.against in parts]
            if over and min(part.value for part in parts.values()) > min(over):
                lifts = [parts.get(c.against, c) for c in lifts]
            chosen += lifts
        return tuple(chosen)
