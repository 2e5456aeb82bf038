"""Old names of settings, kept for one release: they work, and warn.

What was renamed, and to what, is listed for users in docs/upgrading.md.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["renamed"]

_Renamed = TypeVar("_Renamed", bound=Callable[..., Any])


def renamed(
    names: dict[str, str], *, through: dict[str, Callable[[Any], Any]] | None = None
) -> Callable[[_Renamed], _Renamed]:
    """Let a function, or a class that is built by keywords, be called by old names too.

    Of a class the old names can be read as well.

    Args:
        names: The new name by the old one.
        through: By old name, what turns an old value into the new one and back, where both are
            not the same: `operator.not_` for a truth value that was turned round.
    """
    turns = through or {}

    def decorate(called: _Renamed) -> _Renamed:
        if not inspect.isclass(called):
            return _accepting(called, called.__name__, names, turns)  # type: ignore[return-value]
        built: Any = called
        built.__init__ = _accepting(built.__init__, built.__name__, names, turns)
        for old, new in names.items():
            setattr(built, old, property(_reader(built.__name__, old, new, turns.get(old))))
        return called

    return decorate


def _accepting(
    called: Callable[..., Any],
    title: str,
    names: dict[str, str],
    turns: dict[str, Callable[[Any], Any]],
) -> Callable[..., Any]:
    @functools.wraps(called)
    def wrapped(*arguments: Any, **values: Any) -> Any:
        for old in values.keys() & names.keys():
            _warn(title, old, names[old])
            # With `dataclasses.replace` the new name is there as well, and not what was asked for.
            value = values.pop(old)
            values[names[old]] = turns[old](value) if old in turns else value
        return called(*arguments, **values)

    return wrapped


def _reader(
    title: str, old: str, new: str, turn: Callable[[Any], Any] | None
) -> Callable[[Any], Any]:
    def read(self: Any) -> Any:
        _warn(title, old, new)
        value = getattr(self, new)
        return value if turn is None else turn(value)

    return read


def _warn(title: str, old: str, new: str) -> None:
    warnings.warn(
        f"{title}: {old} is now called {new}, and the old name will be removed in the next release",
        DeprecationWarning,
        stacklevel=3,
    )
