"""The engine on this machine: one process a worker, one task at a time each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bdaudit.engines.base import (
    Advanced,
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
from bdaudit.errors import ConfigError, EngineError
from bdaudit.foundation.progress import Progress

__all__ = ["LocalEngine", "count_processors", "torch_threads"]

_MAX_ATTEMPTS = 2
_STOP_WITHIN_S = 2.0
_READY = b"ready"
_OVER = b"over"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalEngine:
    """Does tasks in processes of this machine; a single worker is this process itself.

    A worker that dies (killed, out of memory) has its task given to another one, once.

    Workers are started fresh (spawned), with the warning filters of this process. They cannot
    start processes of their own through `multiprocessing`. They end with this process, however it
    ends.

    Args:
        workers: Tasks at a time.
        threads_per_worker: Threads each worker computes with. `None` leaves a single worker as it
            is, and divides the processors this process may use among several.

    Raises:
        ConfigError: A number is below 1.
    """

    def __init__(self, workers: int = 1, threads_per_worker: int | None = None) -> None:
        for name, count in (("workers", workers), ("threads per worker", threads_per_worker)):
            if count is not None and count < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {count}")
        self.workers = workers
        self.threads_per_worker = threads_per_worker

    def run(self, work: Work, tasks: Iterable[Task], shared: Any = None) -> Events:
        """Do `work` with every task; as `Engine.run` says."""
        if self.workers == 1:
            return _run_here(work, tasks, shared, self.threads_per_worker)
        n_threads = self.threads_per_worker
        if n_threads is None:
            n_threads = max(1, count_processors() // self.workers)
        return _Pool(work, shared, self.workers, n_threads).run(Schedule(tasks))


def count_processors() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- in this process ----------------------------------------------------------------------------


def _run_here(work: Work, tasks: Iterable[Task], shared: Any, n_threads: int | None) -> Events:
    schedule = Schedule(tasks)
    with torch_threads(n_threads):
        while (task := schedule.next()) is not None:
            yield from schedule.refusals()
            yield Started(task.key, "this process")
            started = time.perf_counter()
            steps = None
            try:
                steps = work(task.payload, shared)
                while True:
                    try:
                        progress = next(steps)
                    except StopIteration as stop:
                        result = stop.value
                        break
                    yield Advanced(task.key, progress)
            except (Exception, SystemExit) as error:
                event: Finished | Failed = failed_with(task.key, error)
            else:
                event = Finished(task.key, result, time.perf_counter() - started)
            finally:
                if steps is not None:
                    steps.close()
            yield from schedule.over(event)
        yield from schedule.refusals()
        yield from schedule.close()


@contextlib.contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """Have torch compute with `n_threads`, where it is loaded, and put the number back."""
    torch = sys.modules.get("torch")
    if n_threads is None or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- in other processes: this side --------------------------------------------------------------


@dataclass
class _Worker:
    """A process, our end of its pipe, what it is doing, and what it is to be told when it is up."""

    name: str
    process: BaseProcess
    connection: Connection
    to_be_told: list[bytes]
    is_ready: bool = False
    task: Task | None = None


class _Pool:
    """The workers of one run."""

    def __init__(self, work: Work, shared: Any, size: int, n_threads: int) -> None:
        self._common = pack_common(work, shared)
        self._context = multiprocessing.get_context("spawn")
        self._n_threads = n_threads
        self._names = [f"worker {number}" for number in range(1, size + 1)]
        self._workers: list[_Worker] = []
        self._attempts: dict[str, int] = {}

    def run(self, schedule: Schedule) -> Events:
        try:
            while True:
                yield from self._give_out(schedule)
                if not self._busy:
                    break
                for worker in self._with_news():
                    yield from self._hear(worker, schedule)
            yield from schedule.close()
        except KeyboardInterrupt:
            # What was finished, and not yet heard of, is not lost.
            self._kill()
            for worker in self._workers:
                yield from self._last_words(worker)
            raise
        finally:
            self._stop()

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    def _give_out(self, schedule: Schedule) -> Events:
        while len(self._busy) < len(self._names):
            task = schedule.next()
            yield from schedule.refusals()
            if task is None:
                return
            try:
                payload = pack_payload(task.payload)
            except Exception as error:  # what a payload's own code may raise is anything
                yield from schedule.over(failed_with(task.key, error))
                continue
            worker = next((w for w in self._workers if w.task is None), None) or self._hire()
            worker.task = task
            self._attempts[task.key] = self._attempts.get(task.key, 0) + 1
            worker.to_be_told.append(payload)
            if worker.is_ready:
                _tell(worker)
            yield Started(task.key, worker.name)

    def _hire(self) -> _Worker:
        taken = {worker.name for worker in self._workers}
        name = next(name for name in self._names if name not in taken)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(theirs, self._n_threads),
            name=name,
            daemon=True,
        )
        with _thread_variables(self._n_threads), _without_interrupts():
            process.start()
        theirs.close()
        worker = _Worker(name, process, ours, [self._common])
        self._workers.append(worker)
        return worker

    def _with_news(self) -> list[_Worker]:
        """Wait until one of them says something, or dies."""
        found = wait([worker.connection for worker in self._workers])
        return [worker for worker in self._workers if worker.connection in found]

    def _hear(self, worker: _Worker, schedule: Schedule) -> Events:
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            yield from self._bury(worker, schedule)
            return
        if not worker.is_ready:
            # Told before it is up, we would wait for it, and the other workers for us.
            worker.is_ready = True
            _tell(worker)
            return
        assert worker.task is not None
        key = worker.task.key
        if message != _OVER:
            yield Advanced(key, pickle.loads(message))  # noqa: S301 - from a worker of ours
            return
        try:
            outcome = worker.connection.recv_bytes()
        except (EOFError, OSError):
            yield from self._bury(worker, schedule)
            return
        event = read_outcome(key, outcome, retried=self._attempts[key] > 1)
        worker.task = None
        yield from schedule.over(event)

    def _bury(self, worker: _Worker, schedule: Schedule) -> Events:
        """Give the task of a worker that died to another, or up."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        task = worker.task
        if task is None:
            return
        if self._attempts[task.key] < _MAX_ATTEMPTS:
            schedule.put_back(task)
            return
        error = EngineError(
            f"{task.key}: its worker died {self._attempts[task.key]} times, the last time "
            f"{_cause_of_death(worker.process.exitcode)}; try fewer workers"
        )
        yield from schedule.over(Failed(task.key, error, retried=True))

    def _last_words(self, worker: _Worker) -> Events:
        """Read what is left in the pipe of a worker that was stopped."""
        if worker.task is None or not worker.is_ready:
            return
        key = worker.task.key
        # The message that the interrupt fell into may be in pieces, and what follows with it.
        with contextlib.suppress(Exception):
            while worker.connection.poll():
                if worker.connection.recv_bytes() == _OVER:
                    outcome = worker.connection.recv_bytes()
                    yield read_outcome(key, outcome, retried=self._attempts[key] > 1)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + _STOP_WITHIN_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _stop(self) -> None:
        """End all workers: those at rest see their pipe closed, others are not asked."""
        if not self._busy:
            for worker in self._workers:
                worker.connection.close()
            for worker in self._workers:
                worker.process.join(_STOP_WITHIN_S)
        self._kill()
        for worker in self._workers:
            worker.connection.close()
            worker.process.close()


def _tell(worker: _Worker) -> None:
    """Send what a worker is to be told; one that has died is noticed when it is listened to."""
    with contextlib.suppress(OSError):
        for message in worker.to_be_told:
            worker.connection.send_bytes(message)
    worker.to_be_told.clear()


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"by {name}" + (" (was memory short?)" if name == "SIGKILL" else "")


@contextlib.contextmanager
def _thread_variables(n_threads: int) -> Iterator[None]:
    """Set the variables that numerical libraries read when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(n_threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start children deaf to Ctrl-C: it goes to the whole group, and is ours to handle.

    It is held back here, not ignored, so that one that falls into this moment is not lost.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in other processes: their side -------------------------------------------------------------


def _serve(connection: Connection, n_threads: int) -> None:
    """Do tasks until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(progress: Progress) -> None:
        connection.send_bytes(pickle.dumps(progress))

    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(_READY)
        common = unpack_common(connection.recv_bytes())
        with torch_threads(n_threads):
            while True:
                outcome = perform(common, connection.recv_bytes(), tell)
                connection.send_bytes(_OVER)
                connection.send_bytes(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
