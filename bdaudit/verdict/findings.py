"""What a rule finds: the outcome with the figures that led to it.

`bdaudit.verdict.sentences` puts them into words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bdaudit.records import Baseline, Comparison, Outcome, Rate, Relearning
from bdaudit.verdict.doubts import Doubt
from bdaudit.verdict.figures import Attack
from bdaudit.verdict.placebos import PlaceboNull

__all__ = ["Active", "Dormant", "Finding", "Inconclusive", "Removed"]


@dataclass(frozen=True)
class Active:
    """The trigger alone still works.

    Attributes:
        asr: Of the trigger alone on the defended model.
        references: The innocent models, which it moves less.
        deciding: The comparisons, all of which hold.
    """

    outcome: ClassVar[Outcome] = "active"
    asr: Rate
    references: tuple[Baseline, ...]
    deciding: tuple[Comparison, ...]


@dataclass(frozen=True)
class Dormant:
    """An attack wakes the trigger, and does so nowhere else.

    Attributes:
        alone: ASR of the trigger alone on the defended model.
        attack: The one that tells most.
        relearning: That it brings the trigger back, where "dormant" rests on it as well.
    """

    outcome: ClassVar[Outcome] = "dormant"
    alone: Rate
    attack: Attack
    relearning: Relearning | None = None

    @property
    def deciding(self) -> tuple[Comparison, ...]:
        """Every comparison of that attack."""
        return self.attack.comparisons


@dataclass(frozen=True)
class Removed:
    """No attack does surely more on the defended model than without a backdoor.

    Attributes:
        largest: Of all bounds the one with the highest upper end.
        largest_eps: The largest eps at which a lift could have shown.
        only_asked: Whether no attack looked into the defended model.
        deciding: All the bounds.
        placebos: The comparison with placebos at each eps where there is one.
        by_placebos: Whether placebos decided.
        limit: The lift that nothing surely reaches.
    """

    outcome: ClassVar[Outcome] = "removed"
    largest: Comparison
    largest_eps: float
    only_asked: bool
    deciding: tuple[Comparison, ...]
    placebos: tuple[PlaceboNull, ...]
    by_placebos: bool
    limit: float


@dataclass(frozen=True)
class Inconclusive:
    """Neither can be said.

    Attributes:
        doubts: Everything that stands in the way, one or more.
        deciding: For each attack the comparison nearest to "dormant".
    """

    outcome: ClassVar[Outcome] = "inconclusive"
    doubts: tuple[Doubt, ...]
    deciding: tuple[Comparison, ...]


Finding = Active | Dormant | Removed | Inconclusive
