"""From the name of an engine to the engine."""

from __future__ import annotations

from bdaudit.engines.base import Engine
from bdaudit.engines.local import LocalEngine
from bdaudit.engines.ray_engine import RayEngine
from bdaudit.errors import ConfigError

__all__ = ["ENGINES", "open_engine"]

ENGINES = ("local", "ray")
"""The engines by name."""


def open_engine(
    name: str,
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    gpus_per_task: float | None = None,
    address: str | None = None,
    start_limit_s: float | None = None,
) -> Engine:
    """Return the engine `name`.

    Args:
        name: `local`: processes on this machine; `ray`: see `RayEngine`.
        workers: Tasks at a time; `None` is 1 here, and all there is room for on Ray.
        threads_per_worker: Threads each of them computes with; `None` shares the processors out
            here when there are several, and is 1 on Ray.
        gpus_per_task: Of Ray: GPUs a task takes, none by default.
        address: Of Ray: of a cluster.
        start_limit_s: Of Ray: seconds to wait for a first task to begin, 120 by default.

    Raises:
        ConfigError: There is no engine of that name, a number is out of range, or what is given is
            of the other engine.
    """
    if name == "local":
        given = {"address": address, "GPUs a task": gpus_per_task, "start limit": start_limit_s}
        for what, value in given.items():
            if value is not None:
                raise ConfigError(f"{what}: only the engine ray takes it")
        return LocalEngine(1 if workers is None else workers, threads_per_worker)
    if name == "ray":
        return RayEngine(
            workers,
            threads_per_worker,
            gpus_per_task=gpus_per_task or 0.0,
            address=address,
            start_limit_s=120.0 if start_limit_s is None else start_limit_s,
        )
    raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
