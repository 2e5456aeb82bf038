"""The engine on Ray: tasks on this machine or on all machines of a cluster.

Nothing else imports ray, and this module imports it when a run begins.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdaudit.engines.base import (
    Advanced,
    Common,
    Event,
    Events,
    Failed,
    Finished,
    Schedule,
    Started,
    Task,
    Work,
    failed_with,
    pack_common,
    pack_payload,
    perform,
    read_outcome,
    unpack_common,
)
from bdaudit.engines.local import torch_threads
from bdaudit.errors import ConfigError, EngineError, ResourceError
from bdaudit.foundation.progress import Progress

__all__ = ["RayEngine"]

_MAX_ATTEMPTS = 3
_LISTEN_EVERY_S = 0.2
_LOOPBACK = "127.0.0.1"


class RayEngine:
    """Does tasks on Ray, each in a process with processors and GPUs of its own.

    A task whose worker is lost (killed, out of memory, its machine gone) is given out again, three
    times in all. Every machine of a cluster needs the same bdaudit, and sees inputs and results
    under the same names; tasks begin in the working folder of this process where there is one.

    Args:
        workers: Tasks at a time; `None` for as many as there is room for.
        threads_per_worker: Processors a task takes, and threads it computes with; `None` is 1.
        gpus_per_task: GPUs a task takes; a fraction lets several share one.
        address: Of a cluster, `auto` for the one this machine belongs to; `None` starts Ray on
            this machine for the run, for `workers` tasks and listening on loopback alone.
        start_limit_s: Seconds to wait for the first of the tasks given out to begin, when none is
            under way.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        workers: int | None = None,
        threads_per_worker: int | None = None,
        *,
        gpus_per_task: float = 0.0,
        address: str | None = None,
        start_limit_s: float = 120.0,
    ) -> None:
        for name, count in (("workers", workers), ("threads per worker", threads_per_worker)):
            if count is not None and count < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {count}")
        if not gpus_per_task >= 0.0 or (gpus_per_task > 1.0 and gpus_per_task % 1.0):
            raise ConfigError(
                f"GPUs a task: expected a fraction of one, or a whole number, got {gpus_per_task:g}"
            )
        if not start_limit_s > 0.0:
            raise ConfigError(f"start limit: expected seconds above 0, got {start_limit_s:g}")
        self.workers = sys.maxsize if workers is None else workers
        self.n_threads = threads_per_worker or 1
        self.gpus_per_task = gpus_per_task
        self.address = address
        self.start_limit_s = start_limit_s

    def run(self, work: Work, tasks: Iterable[Task], shared: Any = None) -> Events:
        """Do `work` with every task; as `Engine.run` says.

        Raises:
            ConfigError: Two tasks have the same key, or ray is not installed.
            ResourceError: No task could begin within the start limit, or there is no cluster.
        """
        ray = _import_ray()
        with self._connected(ray):
            yield from _Run(self, ray, work, shared).events(Schedule(tasks))

    @contextlib.contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        if ray.is_initialized():
            yield  # by whoever imports us, who also ends it
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            options["include_dashboard"] = False
            options["_node_ip_address"] = _LOOPBACK
            if self.workers != sys.maxsize:
                options["num_cpus"] = self.workers * self.n_threads
        try:
            ray.init(address=self.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "on this machine" if self.address is None else f"at {self.address}"
            raise ResourceError(f"ray: no cluster {where}: {_gist(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _import_ray() -> Any:
    # Nobody is told of our use of it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigError("engine ray: needs ray: pip install 'bdaudit[ray]'") from error


def _gist(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# -- this side ----------------------------------------------------------------------------------


@dataclass
class _Given:
    """A task that was given out: what it was given out as, and where it is."""

    task: Task
    attempt: int
    has_begun: bool = False


@dataclass
class _Run:
    """One run on a cluster that is connected to."""

    engine: RayEngine
    ray: Any
    work: Work
    shared: Any
    _given: dict[Any, _Given] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _last_news: float = 0.0

    def events(self, schedule: Schedule) -> Events:
        ray = self.ray
        # Once into the object store, from where each machine fetches it once.
        common = ray.put(pack_common(self.work, self.shared))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        mailbox = (
            ray.remote(_Mailbox)
            .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
            .remote()
        )
        function = ray.remote(_perform_on_ray).options(
            num_cpus=self.engine.n_threads,
            num_gpus=self.engine.gpus_per_task,
            max_retries=0,  # we give it out again ourselves, and say so
        )
        self._last_news = time.monotonic()
        try:
            while True:
                yield from self._give_out(schedule, function, common, mailbox)
                if not self._given:
                    break
                ready, _ = ray.wait(
                    list(self._given), num_returns=1, timeout=_LISTEN_EVERY_S, fetch_local=False
                )
                for message in ray.get(mailbox.take.remote()):
                    yield from self._hear(message)
                for reference in ready:
                    yield from self._settle(reference, schedule)
                self._check_that_some_begin()
            yield from schedule.close()
        except KeyboardInterrupt:
            # What was finished, and not yet heard of, is not lost.
            ready, _ = ray.wait(list(self._given), num_returns=len(self._given), timeout=0)
            for reference in ready:
                yield from self._settle(reference, schedule)
            raise
        finally:
            for reference in self._given:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)
            ray.kill(mailbox)

    def _give_out(self, schedule: Schedule, function: Any, common: Any, mailbox: Any) -> Events:
        while len(self._given) < min(self.engine.workers, self._room()):
            task = schedule.next()
            yield from schedule.refusals()
            if task is None:
                return
            try:
                payload = pack_payload(task.payload)
            except Exception as error:  # what a payload's own code may raise is anything
                yield from schedule.over(failed_with(task.key, error))
                continue
            attempt = self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
            # In a list, since a reference by itself would be resolved, and unpacked, every time.
            reference = function.remote(
                [common],
                task.key,
                attempt,
                payload,
                mailbox,
                self.engine.n_threads,
                str(Path.cwd()),
            )
            self._given[reference] = _Given(task, attempt)

    def _room(self) -> int:
        """Count the tasks that the cluster as it is now holds, one at least: more may come."""
        has = self.ray.cluster_resources()
        room = has.get("CPU", 0.0) // self.engine.n_threads
        if self.engine.gpus_per_task:
            room = min(room, has.get("GPU", 0.0) // self.engine.gpus_per_task)
        return max(1, int(room))

    def _hear(self, message: tuple[str, int, str | bytes]) -> Iterator[Event]:
        key, attempt, content = message
        given = next(
            (g for g in self._given.values() if (g.task.key, g.attempt) == (key, attempt)), None
        )
        if given is None:
            return  # of an attempt that was given up
        self._last_news = time.monotonic()
        if isinstance(content, str):
            given.has_begun = True
            yield Started(key, content)
        else:
            yield Advanced(key, pickle.loads(content))  # noqa: S301 - from a worker of ours

    def _settle(self, reference: Any, schedule: Schedule) -> Events:
        given = self._given.pop(reference)
        self._last_news = time.monotonic()
        task = given.task
        try:
            outcome = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            # Our own part of it failed, before the work began.
            event: Finished | Failed = Failed(
                task.key,
                EngineError(
                    f"{task.key}: could not be begun on a worker: {_gist(error.cause)}; does it "
                    "have the same bdaudit?"
                ),
                traceback=str(error),
            )
        except self.ray.exceptions.RayError as error:
            if given.attempt < _MAX_ATTEMPTS:
                schedule.put_back(task)
                return
            event = Failed(
                task.key,
                EngineError(
                    f"{task.key}: its worker was lost {given.attempt} times, the last time: "
                    f"{_gist(error)}"
                ),
                retried=True,
            )
        else:
            if not given.has_begun:  # it was over before it was heard of
                yield Started(task.key, "a worker")
            event = read_outcome(task.key, outcome, retried=given.attempt > 1)
        yield from schedule.over(event)

    def _check_that_some_begin(self) -> None:
        """Give up when nothing of ours runs and nothing begins.

        Raises:
            ResourceError: So it is since the start limit.
        """
        if any(given.has_begun for given in self._given.values()) or not self._given:
            return
        waited = time.monotonic() - self._last_news
        if waited < self.engine.start_limit_s:
            return
        needs = {"CPU": float(self.engine.n_threads), "GPU": self.engine.gpus_per_task}
        has, free = self.ray.cluster_resources(), self.ray.available_resources()
        told = "; ".join(
            f"{name}: a task takes {need:g}, {free.get(name, 0.0):g} of {has.get(name, 0.0):g} free"
            for name, need in needs.items()
            if need
        )
        raise ResourceError(
            f"ray: no task could begin within {self.engine.start_limit_s:g} s ({told}); wait for "
            "what else runs there, take fewer GPUs or threads a task, or raise --start-limit"
        )


# -- in the cluster -----------------------------------------------------------------------------


class _Mailbox:
    """Keeps what workers say until it is taken; an actor beside the one who asked."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    def put(self, message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[Any]:
        taken, self._messages = self._messages, []
        return taken


_known: dict[str, Common] = {}
"""What this worker has unpacked: the run's own, kept between its tasks."""


def _perform_on_ray(
    common: list[Any],
    key: str,
    attempt: int,
    payload: bytes,
    mailbox: Any,
    n_threads: int,
    folder: str,
) -> bytes:
    ray = importlib.import_module("ray")
    mailbox.put.remote((key, attempt, f"{socket.gethostname()}, process {os.getpid()}"))
    with contextlib.suppress(OSError):
        os.chdir(folder)
    name = common[0].hex()
    if name not in _known:
        _known.clear()
        _known[name] = unpack_common(ray.get(common[0]))

    def tell(progress: Progress) -> None:
        mailbox.put.remote((key, attempt, pickle.dumps(progress)))

    with torch_threads(n_threads):
        return perform(_known[name], payload, tell)
