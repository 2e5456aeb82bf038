"""Engines: many tasks on the processes of this machine, or on many machines."""

from bdaudit.engines.base import (
    Advanced,
    Engine,
    Event,
    Events,
    Failed,
    Finished,
    Started,
    Task,
    Work,
    WorkerError,
)
from bdaudit.engines.local import LocalEngine
from bdaudit.engines.opening import ENGINES, open_engine
from bdaudit.engines.ray_engine import RayEngine

__all__ = [
    "ENGINES",
    "Advanced",
    "Engine",
    "Event",
    "Events",
    "Failed",
    "Finished",
    "LocalEngine",
    "RayEngine",
    "Started",
    "Task",
    "Work",
    "WorkerError",
    "open_engine",
]
