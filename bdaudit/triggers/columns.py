"""A trigger of a table: some columns set to fixed values in every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers.transforms import Transform

__all__ = ["SetColumns"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SetColumns(Transform):
    """Columns of a 1 x F row set to values: BadNets' patch on a table.

    Source: Gu et al., "BadNets" (2017), for images.

    Attributes:
        index: Places of the columns, counted from 0 in the order in which the model takes them.
        value: What each is set to, on the scale of the model: [0, 1].

    Raises:
        ConfigError: Places and values are not as many, a place is doubled or below 0, or a value is
            outside [0, 1].
    """

    kind: ClassVar[str] = "columns"
    index: tuple[int, ...]
    value: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", tuple(map(float, self.value)))  # 1 and 1.0 are one digest
        if not self.index or len(self.index) != len(self.value):
            raise ConfigError(
                "columns: expected as many places as values and one or more, got "
                f"{len(self.index)} and {len(self.value)}"
            )
        if min(self.index) < 0 or len(set(self.index)) != len(self.index):
            raise ConfigError(f"index: expected different places from 0, got {list(self.index)}")
        if not all(0.0 <= value <= 1.0 for value in self.value):
            raise ConfigError(
                f"value: expected values scaled to [0, 1], got {list(self.value)}; scale them as "
                "the column's range in columns.toml does"
            )

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Set the columns of rows (N, 1, 1, F)."""
        if tuple(images.shape[1:3]) != (1, 1):
            raise TriggerError(
                "a trigger of kind 'columns' is for tables, whose rows are images of 1 x F; got "
                f"images of shape {tuple(images.shape[1:])}"
            )
        if max(self.index) >= images.shape[3]:
            raise TriggerError(
                f"the trigger sets column {max(self.index)}, and the table has "
                f"{images.shape[3]} (counted from 0)"
            )
        changed = images.clone()
        values = torch.tensor(self.value, dtype=images.dtype, device=images.device)
        changed[..., list(self.index)] = values
        return changed
