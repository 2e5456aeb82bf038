"""Which columns of a table an attack can change at all, and whether that is enough to judge by."""

from __future__ import annotations

from collections.abc import Sequence

from bdaudit.cases.subjects import Inputs
from bdaudit.perturbation import Norm, can_move, make_ball
from bdaudit.records import Diagnostic

__all__ = ["demand_columns_move", "doubts_about_columns"]

_ENOUGH = 0.5
"""Share of columns below which an attack that can change no more is no test of a model."""
_CHANGED = 1e-6
"""On the scale of the model: by less a trigger does not change a column."""
_MOST_NAMED = 5


def demand_columns_move(inputs: Inputs, norm: Norm, ladder: Sequence[float]) -> None:
    """Refuse an attack that the columns of the table leave no room for, before it is paid for.

    Raises:
        ConfigError: No column can move at one of the eps, or none as the norm would have it.
    """
    for eps in ladder:
        make_ball(norm, eps, inputs.steps, marked=inputs.marked)


def doubts_about_columns(inputs: Inputs, ladder: Sequence[float]) -> list[Diagnostic]:
    """Say how many columns can move at each eps, where some move by steps or not at all.

    It is an error, which forbids "removed", where at the largest eps fewer than half of all can, or
    none of those that the trigger changes.
    """
    steps, columns = inputs.steps, inputs.held_out.columns
    if not steps or columns is None:
        return []
    counts = ", ".join(f"{sum(can_move(steps, eps))} at eps {eps:g}" for eps in sorted(ladder))
    said = [f"of {len(steps)} columns of the table an attack can change {counts}"]
    moving = can_move(steps, max(ladder))
    poisoned = inputs.held_out_poisoned
    change = (poisoned.triggered - poisoned.clean).abs().flatten(1).amax(dim=0)
    stamped = (change > _CHANGED).nonzero().flatten().tolist()
    none_stamped = bool(stamped) and not any(moving[place] for place in stamped)
    if none_stamped:
        named = ", ".join(columns.names[place] for place in stamped[:_MOST_NAMED])
        more = "" if len(stamped) <= _MOST_NAMED else f" and {len(stamped) - _MOST_NAMED} more"
        said.append(f"none of those that the trigger changes ({named}{more}) can be changed")
    few = sum(moving) < _ENOUGH * len(steps)
    if few:
        said.append("fewer than half of all can be changed at any of these")
    wrong = none_stamped or few
    if wrong:
        said.append(
            "an attack with so little to change cannot show that a trigger is gone; give an eps "
            'of the smallest step of more columns, and in columns.toml kind = "number" to '
            "columns that take any value"
        )
    return [
        Diagnostic(
            code="columns_that_move",
            severity="error" if wrong else "info",
            subject="attack",
            message="; ".join(said),
        )
    ]
