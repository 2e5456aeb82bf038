"""From the name of an engine to the engine."""

from __future__ import annotations

from bdaudit.engines.base import Engine
from bdaudit.engines.local import LocalEngine
from bdaudit.errors import ConfigError

__all__ = ["ENGINES", "open_engine"]

ENGINES = ("local",)
"""The engines by name."""


def open_engine(name: str, *, workers: int = 1, threads_per_worker: int | None = None) -> Engine:
    """Return the engine `name`.

    Args:
        name: `local`: processes on this machine.
        workers: Tasks at a time.
        threads_per_worker: Threads each of them computes with; `None` shares the processors out
            when there are several.

    Raises:
        ConfigError: There is no engine of that name, or a number is out of range.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    return LocalEngine(workers, threads_per_worker)
