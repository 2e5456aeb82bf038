"""A record and the policy it is judged by, with what everything else looks up in the two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bdaudit.records import AttackRun, AuditRecord, Baseline, Condition
from bdaudit.verdict.policy import Policy

__all__ = ["FEWEST_FOR_A_SPREAD", "Case"]

FEWEST_FOR_A_SPREAD = 3
"""Of fewer innocent models the spread says nothing."""


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
    def one_of_many(self) -> bool:
        """Whether the trigger is to an innocent model no more than any placebo is.

        So a patch that somebody chose is. A trigger that covers the image does more by its nature,
        and one that was recovered was made by descending a model, which moves others too.
        """
        return not self.wide and not self.record.trigger.recovered

    @property
    def n_innocents_needed(self) -> int:
        """Innocent models that "removed" and "dormant" need for this trigger.

        Where placebos decide, none for a trigger that is one of many, and otherwise one. A
        recovered trigger needs one in any case.
        """
        if self.by_placebos:
            return 0 if self.one_of_many else 1
        if self.wide:
            return self.policy.min_references_wide
        return max(self.policy.min_references, 0 if self.one_of_many else 1)

    def same_attack(
        self, run: AttackRun, *, model: str, condition: Condition = "trigger"
    ) -> AttackRun | None:
        """Return the attack of `run` on another model or under another condition.

        `None` where it was not made.
        """
        return self._runs.get((model, condition, *run.attack))

    def placebo_runs(self, run: AttackRun, *, model: str) -> dict[int, AttackRun]:
        """Return the attack of `run` with each placebo on a model, by the placebo's number."""
        return self._placebo_runs.get((model, *run.attack), {})

    @cached_property
    def by_placebos(self) -> bool:
        """Whether placebos decide, in place of innocent models that are too few.

        What any other trigger than a chosen patch does beyond its placebos by its nature, only an
        innocent model can tell; from three of them on they are the sharper null (measured,
        docs/placebos.md).
        """
        placebos = self.record.placebos
        if placebos is None or placebos.missing is not None:
            return False
        fewest = 0 if self.one_of_many else 1
        return fewest <= len(self.references) < FEWEST_FOR_A_SPREAD

    def confidence(self, n_tries: int = 1) -> float:
        """Return the two-sided confidence of an interval whose ends are one-sided bounds.

        Args:
            n_tries: Comparisons of which one success is enough; their number is corrected for
                (Bonferroni).
        """
        return 1.0 - 2.0 * (1.0 - self.policy.confidence) / max(n_tries, 1)

    @cached_property
    def _placebo_runs(self) -> dict[tuple[object, ...], dict[int, AttackRun]]:
        found: dict[tuple[object, ...], dict[int, AttackRun]] = {}
        runs = () if self.record.placebos is None else self.record.placebos.runs
        for run in runs:
            assert run.placebo is not None  # or it is no record
            found.setdefault((run.model, *run.attack), {})[run.placebo] = run
        return found

    @cached_property
    def _runs(self) -> dict[tuple[object, ...], AttackRun]:
        found: dict[tuple[object, ...], AttackRun] = {}
        for run in self.record.runs:
            found.setdefault((run.model, run.condition, *run.attack), run)
        return found
