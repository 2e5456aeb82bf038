"""A record and the policy it is judged by, with what everything else looks up in the two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bdaudit.records import AttackRun, AuditRecord, Baseline, Condition
from bdaudit.verdict.policy import Policy

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A finished audit and the limits it is judged by."""

    record: AuditRecord
    policy: Policy

    @cached_property
    def defended(self) -> Baseline | None:
        """The model under audit without any perturbation, or `None` where it was not measured."""
        return self.record.defended

    @cached_property
    def original(self) -> Baseline | None:
        """The model that holds the backdoor, or `None` where it was not measured."""
        return self.record.original

    @cached_property
    def references(self) -> tuple[Baseline, ...]:
        """The innocent models that serve."""
        return self.record.innocents

    @cached_property
    def left_out(self) -> tuple[Baseline, ...]:
        """The innocent models that were measured and found unfit."""
        return tuple(b for b in self.record.references if b.left_out is not None)

    @cached_property
    def attacks(self) -> tuple[AttackRun, ...]:
        """The re-activation attacks on the defended model, in order of eps."""
        return self.record.runs_of(role="defended", condition="trigger")

    @property
    def wide(self) -> bool:
        """Whether the trigger covers the image."""
        return self.record.trigger.wide

    @property
    def n_innocents_needed(self) -> int:
        """Innocent models that "removed" and "dormant" need for this trigger."""
        return self.policy.min_references_wide if self.wide else self.policy.min_references

    def same_attack(
        self, run: AttackRun, *, model: str, condition: Condition = "trigger"
    ) -> AttackRun | None:
        """Return the attack of `run` on another model or under another condition.

        `None` where it was not made.
        """
        return self._runs.get((model, condition, *run.attack))

    def confidence(self, n_tries: int = 1) -> float:
        """Return the two-sided confidence of an interval whose ends are one-sided bounds.

        Args:
            n_tries: Comparisons of which one success is enough; their number is corrected for
                (Bonferroni).
        """
        return 1.0 - 2.0 * (1.0 - self.policy.confidence) / max(n_tries, 1)

    @cached_property
    def _runs(self) -> dict[tuple[object, ...], AttackRun]:
        found: dict[tuple[object, ...], AttackRun] = {}
        for run in self.record.runs:
            found.setdefault((run.model, run.condition, *run.attack), run)
        return found
