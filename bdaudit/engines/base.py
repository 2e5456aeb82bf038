"""What every engine has in common: tasks, what becomes of them, and which comes next."""

from __future__ import annotations

import pickle
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from bdaudit.errors import ConfigError, EngineError
from bdaudit.foundation.progress import Listener, Progress, Steps, finish

__all__ = [
    "Advanced",
    "Common",
    "Engine",
    "Event",
    "Events",
    "Failed",
    "Finished",
    "Schedule",
    "Started",
    "Task",
    "Trouble",
    "Work",
    "WorkerError",
    "failed_with",
    "pack_common",
    "pack_payload",
    "perform",
    "read_outcome",
    "unpack_common",
]

_TELL_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work that can be done on its own.

    Attributes:
        key: Its name, unlike that of any other task.
        payload: What the work is told about it; it must pickle.
        after: Keys of tasks that must have finished before this one starts. When one of them
            fails, this one fails too. Their results are not passed on.
        behind: Keys of tasks that must be over before this one starts, however they end: it can
            do without them, and is done sooner with them.
    """

    key: str
    payload: Any
    after: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A worker was given a task; said again when it is given to another worker."""

    key: str
    worker: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """A sign of life from inside a task. Some are left out where there are many."""

    key: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Finished:
    """A task is done.

    Attributes:
        key: Which.
        result: What the work returned.
        elapsed_s: Seconds of the work itself, without waiting for a worker.
    """

    key: str
    result: Any
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A task will not be done.

    Attributes:
        key: Which.
        error: What the work raised. A `BdauditError` is as it was raised; an exception that cannot
            travel between processes is a `WorkerError`; `EngineError` when the worker died, or
            when a task it waits for has failed.
        retried: Whether it was tried a second time, because its first worker died.
        traceback: Where it was raised, as text; empty where nothing was raised.
    """

    key: str
    error: Exception
    retried: bool = False
    traceback: str = ""


Event: TypeAlias = Started | Advanced | Finished | Failed
"""What becomes of tasks, as it happens."""

Events: TypeAlias = Generator[Event, None, None]
"""Events as they come; to be closed by whoever leaves them early (`contextlib.closing`)."""

Work: TypeAlias = Callable[[Any, Any], Steps[Any]]
"""What is done with every task: `work(payload, shared)`, a step that yields `Progress` and returns
the result. A function at the top of a module, since workers find it by its name."""


class WorkerError(Exception):
    """An exception of a worker that cannot be had here; its message is "KIND: MESSAGE"."""


class Engine(Protocol):
    """Something that does tasks.

    Attributes:
        workers: How many at a time, at most.
    """

    workers: int

    def run(self, work: Work, tasks: Iterable[Task], shared: Any = None) -> Events:
        """Do `work` with every task, and say what becomes of them as it happens.

        Closing the iterator, or an interrupt, stops all workers. Results that are lost by that are
        those of tasks still running.

        Args:
            work: A step at the top of a module.
            tasks: Pulled one by one when there is a worker for the next, so a generator may look
                at the events so far before it decides what comes next.
            shared: Read by all tasks, and handed to every worker once, not with every task.

        Yields:
            Events: for every task at last one `Finished` or one `Failed`, never both.

        Raises:
            ConfigError: Two tasks have the same key.
            ResourceError: There is no worker to be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class Trouble:
    """An exception on its way out of a worker.

    Attributes:
        pickled: The exception, `None` when it cannot be pickled.
        gist: "KIND: MESSAGE".
        traceback: Where it was raised.
    """

    pickled: bytes | None
    gist: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Trouble:
        """Pack `error`, as itself where it survives pickling."""
        gist = "".join(traceback.format_exception_only(error)).strip()
        pickled: bytes | None = None
        try:
            pickled = pickle.dumps(error)
            again = pickle.loads(pickled)  # noqa: S301 - our own bytes, a moment old
            if type(again) is not type(error) or str(again) != str(error):
                pickled = None
        except Exception:  # what an exception's own code may raise is anything
            pickled = None
        if not isinstance(error, Exception):
            pickled = None  # SystemExit of a user's code must not end us
        return cls(pickled, gist, "".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        """Unpack it."""
        if self.pickled is None:
            return WorkerError(self.gist)
        try:
            error = pickle.loads(self.pickled)  # noqa: S301 - from a worker of ours
        except Exception:  # its class may exist in the worker only
            return WorkerError(self.gist)
        assert isinstance(error, Exception)
        return error


@dataclass(frozen=True, slots=True)
class Common:
    """What all tasks of a run have in common, as a worker has it.

    Attributes:
        work, shared: Of the run.
        filters: Warning filters of the process that asked for it.
    """

    work: Work
    shared: Any
    filters: tuple[Any, ...]


def pack_common(work: Work, shared: Any) -> bytes:
    """Pack what all tasks of a run have in common, for its workers.

    Not by multiprocessing's own pickler: torch has it pass tensors as open files, which must not
    outlive a worker and run out by the thousand.
    """
    # Those of other packages are left out, which a worker would have to import for them.
    filters = tuple(f for f in warnings.filters if f[2].__module__ == "builtins")
    return pickle.dumps((work, shared, filters), protocol=pickle.HIGHEST_PROTOCOL)


def unpack_common(packed: bytes) -> Common:
    """Unpack it; where that fails, every task fails of the same."""
    try:
        return Common(*pickle.loads(packed))  # noqa: S301 - from the process that started us
    except (Exception, SystemExit) as error:
        return Common(_failing(error), None, ())


def _failing(error: BaseException) -> Work:
    def work(payload: Any, shared: Any) -> Any:
        raise error

    return work


def failed_with(key: str, error: BaseException) -> Failed:
    """Return the event of a task that failed with the exception that was raised here."""
    trouble = Trouble.of(error)
    return Failed(key, trouble.error(), traceback=trouble.traceback)


def pack_payload(payload: Any) -> bytes:
    """Pack what a task is about."""
    return pickle.dumps(payload, protocol=pickle.HIGHEST_PROTOCOL)


def perform(common: Common, payload: bytes, listener: Listener) -> bytes:
    """Do one task in a worker, and pack what came of it.

    Args:
        common: As unpacked.
        payload: As packed.
        listener: Told of progress, not more often than every tenth of a second.
    """
    started = time.perf_counter()
    told = float("-inf")

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _TELL_EVERY_S:
            told = now
            listener(progress)

    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.filters[:] = common.filters  # type: ignore[index]
            steps = common.work(pickle.loads(payload), common.shared)  # noqa: S301 - as above
            result = finish(steps, tell)
        pickled = pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
    except (Exception, SystemExit) as error:
        return pickle.dumps(Trouble.of(error))
    return pickle.dumps((pickled, time.perf_counter() - started))


def read_outcome(key: str, packed: bytes, *, retried: bool) -> Finished | Failed:
    """Unpack what came of the task `key`."""
    outcome = pickle.loads(packed)  # noqa: S301 - from a worker of ours
    if not isinstance(outcome, Trouble):
        pickled, elapsed_s = outcome
        try:
            return Finished(key, pickle.loads(pickled), elapsed_s)  # noqa: S301
        except Exception as error:  # a class that exists in the worker only
            outcome = Trouble.of(error)
    return Failed(key, outcome.error(), retried, outcome.traceback)


class Schedule:
    """Says which task comes next: pulls them lazily, holds them until what they wait for is done.

    Args:
        tasks: All tasks, in the order they are wanted.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._ready: deque[Task] = deque()
        self._waiting: dict[str, Task] = {}
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._refused: list[Failed] = []

    def next(self) -> Task | None:
        """Return a task that can start, or `None` when there is none for now.

        Raises:
            ConfigError: Two tasks have the same key.
        """
        while not self._ready:
            task = next(self._tasks, None)
            if task is None:
                return None
            if task.key in self._seen:
                raise ConfigError(f"tasks: expected keys that differ, got {task.key!r} twice")
            self._seen.add(task.key)
            self._waiting[task.key] = task
            self._settle()
        return self._ready.popleft()

    def put_back(self, task: Task) -> None:
        """Have a task given out again, before all others."""
        self._ready.appendleft(task)

    def over(self, event: Finished | Failed) -> Events:
        """Note how a task ended, and say it, and what cannot start any more because of it."""
        (self._done if isinstance(event, Finished) else self._failed).add(event.key)
        self._settle()
        yield event
        yield from self.refusals()

    def refusals(self) -> list[Failed]:
        """Return, once, the tasks that cannot start any more."""
        refused, self._refused = self._refused, []
        return refused

    def close(self) -> list[Failed]:
        """Refuse what still waits when nothing runs and nothing more will come."""
        for task in self._waiting.values():
            missing = [key for key in (*task.after, *task.behind) if key not in self._done]
            self._refused.append(
                Failed(task.key, EngineError(f"{task.key}: waits for {missing}, never done"))
            )
        self._waiting.clear()
        return self.refusals()

    def _settle(self) -> None:
        """Sort the waiting tasks anew; a refused one may take others with it."""
        settled = False
        while not settled:
            settled = True
            for task in list(self._waiting.values()):
                failed = [key for key in task.after if key in self._failed]
                if failed:
                    del self._waiting[task.key]
                    self._failed.add(task.key)
                    error = EngineError(f"{task.key}: not begun, since {failed[0]} failed")
                    self._refused.append(Failed(task.key, error))
                    settled = False
                elif self._done.issuperset(task.after) and self._is_over(task.behind):
                    self._ready.append(self._waiting.pop(task.key))

    def _is_over(self, keys: Iterable[str]) -> bool:
        return all(key in self._done or key in self._failed for key in keys)
