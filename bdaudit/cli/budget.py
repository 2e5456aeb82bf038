"""`--budget`: what it sets, wherever neither the command line nor the project file does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeVar

import typer

from bdaudit.settings import BUDGETS, Budget, Table, declared

__all__ = ["within_budget"]

_Table = TypeVar("_Table", bound=Table)


def within_budget(
    ctx: typer.Context, budget: Budget, of: Literal["audit", "search"], table: _Table
) -> _Table:
    """Return a table with the budget's values in the place of defaults that were left as they are.

    Args:
        ctx: Of the command, which knows what was said and by whom.
        budget: The budget.
        of: What the command does.
        table: One of its tables; what the budget does not set is left alone.
    """
    wanted = BUDGETS[budget][of]
    changes: dict[str, Any] = {
        each.attribute: wanted[each.key]
        for each in declared(type(table))
        if each.key in wanted and each.key in ctx.params and _is_default(ctx, each.key)
    }
    put: Any = replace
    changed: _Table = put(table, **changes)
    return changed


def _is_default(ctx: typer.Context, key: str) -> bool:
    source = ctx.get_parameter_source(key)
    return source is None or source.name == "DEFAULT"
