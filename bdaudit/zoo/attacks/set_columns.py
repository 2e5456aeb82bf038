"""A column trigger on a table: BadNets where the pixels are columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdaudit.foundation.progress import Steps
from bdaudit.triggers import SetColumns, TargetRule, Trigger

__all__ = ["SetColumnsConfig", "make_columns_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetColumnsConfig:
    """Settings of the column trigger.

    Attributes:
        index: Places of the columns that are set, from 0.
        value: What each is set to, in [0, 1].

    Raises:
        ConfigError: They are no trigger.
    """

    index: tuple[int, ...] = (0, 1, 2)
    value: tuple[float, ...] = (1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        SetColumns(index=self.index, value=self.value)  # checks both


def make_columns_trigger(
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rule: TargetRule,
    config: SetColumnsConfig,
    generator: torch.Generator,
    helper: nn.Module | None = None,
) -> Steps[Trigger]:
    """Set the columns that the settings name.

    Source: Gu et al., "BadNets" (2017): the pattern is chosen by hand.
    """
    yield from ()
    transform = SetColumns(index=config.index, value=config.value)
    transform.apply(images[:1], None)  # which refuses what is no table, or too narrow a one
    return Trigger(transform=transform, rule=rule, source="columns")
