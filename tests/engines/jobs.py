"""Work for engines under test: at the top of a module, so that workers find it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

from bdaudit.errors import DataError
from bdaudit.foundation.progress import Progress, Steps


def describe(payload: int, shared: Any) -> Steps[tuple[int, int, Any]]:
    """Return the payload's square, who computed it, and what is shared."""
    for k in range(3):
        yield Progress("squaring", k, 3)
    return payload * payload, os.getpid(), shared


def wait_until_there(payload: tuple[Path, list[Path]], shared: float) -> Steps[str]:
    """Leave a sign, then wait for the signs of others, `shared` seconds at most."""
    own, others = payload
    own.touch()
    deadline = time.monotonic() + shared
    while not all(path.exists() for path in others):
        yield Progress("waiting", 0, 1)
        if time.monotonic() > deadline:
            raise TimeoutError(f"none of {others} came")
        time.sleep(0.02)
    return own.name


class Untold(Exception):
    """An exception that pickles, and cannot be had again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


class Unpicklable:
    """A result that cannot travel."""

    def __reduce__(self) -> str:
        raise TypeError("stays here")


def go_wrong(payload: str, shared: Any) -> Steps[Any]:
    """Fail in the way that the payload names."""
    yield Progress("going wrong", 0, 1)
    if payload == "input":
        raise DataError("clean.npz: has no labels")
    if payload == "value":
        raise ValueError("not that")
    if payload == "untold":
        raise Untold("lost", "in transit")
    if payload == "exit":
        raise SystemExit(3)
    if payload == "result":
        return Unpicklable()
    if payload == "warning":
        warnings.warn("beware", UserWarning, stacklevel=1)
    return payload


def die_first(payload: tuple[Path, int], shared: Any) -> Steps[int]:
    """Kill the own process the first `n` times, then return how often it was begun."""
    signs, n_deaths = payload
    signs.mkdir(exist_ok=True)
    (signs / f"{time.time_ns()}").touch()
    n_begun = len(list(signs.iterdir()))
    yield Progress("dying", 0, 1)
    if n_begun <= n_deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return n_begun


def count_threads(payload: object, shared: Any) -> Steps[tuple[int, str | None]]:
    """Return how many threads torch computes with, and what other libraries are told."""
    yield Progress("counting", 0, 1)
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def sleep_long(payload: Path, shared: Any) -> Steps[int]:
    """Write down who sleeps, and sleep on; a payload that ends in "quick" returns at once."""
    payload.write_text(str(os.getpid()))
    yield Progress("sleeping", 0, 1)
    if payload.name.endswith("quick"):
        return os.getpid()
    time.sleep(60)
    return 0


def work_for(payload: tuple[Path, Path, float], shared: Any) -> Steps[int]:
    """Leave a sign, work for some seconds, and leave another."""
    going, done, seconds = payload
    (going / f"{os.getpid()}-{time.time_ns()}").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield Progress("working", 0, 1)
        time.sleep(0.1)
    (done / f"{os.getpid()}-{time.time_ns()}").touch()
    return os.getpid()
