from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bdaudit.engines import (
    Advanced,
    Event,
    Failed,
    Finished,
    LocalEngine,
    Started,
    Task,
    WorkerError,
    open_engine,
)
from bdaudit.errors import ConfigError, DataError, EngineError
from tests.engines import jobs

BOTH = pytest.mark.parametrize("workers", [1, 2])


def results(events: list[Event]) -> dict[str, object]:
    return {event.key: event.result for event in events if isinstance(event, Finished)}


def failures(events: list[Event]) -> dict[str, Failed]:
    return {event.key: event for event in events if isinstance(event, Failed)}


@BOTH
def test_every_task_finishes_once_with_the_shared_data(workers: int) -> None:
    tasks = [Task(f"task {n}", n) for n in range(5)]
    events = list(LocalEngine(workers).run(jobs.describe, tasks, shared=["data"]))
    finished = [event for event in events if isinstance(event, Finished)]
    assert sorted((e.key, e.result[0], e.result[2]) for e in finished) == [
        (f"task {n}", n * n, ["data"]) for n in range(5)
    ]
    assert all(event.elapsed_s > 0 for event in finished)
    pids = {event.result[1] for event in finished}
    assert (os.getpid() in pids) == (workers == 1)
    assert len(pids) <= workers
    for n in range(5):
        of_task = [type(event) for event in events if event.key == f"task {n}"]
        assert of_task[0] is Started
        assert of_task[-1] is Finished
        assert Advanced in of_task


def test_workers_work_at_the_same_time(tmp_path: Path) -> None:
    # Either waits for the sign of the other: one after the other, neither would end.
    one, other = tmp_path / "one", tmp_path / "other"
    tasks = [Task("one", (one, [other])), Task("other", (other, [one]))]
    events = list(LocalEngine(2).run(jobs.wait_until_there, tasks, shared=30.0))
    assert results(events) == {"one": "one", "other": "other"}
    assert {event.worker for event in events if isinstance(event, Started)} == {
        "worker 1",
        "worker 2",
    }


@BOTH
def test_failures_keep_their_kind_and_the_others_go_on(workers: int) -> None:
    names = ["input", "value", "untold", "exit", "warning", "fine"]
    events = list(LocalEngine(workers).run(jobs.go_wrong, [Task(n, n) for n in names]))
    failed = failures(events)
    assert results(events) == {"fine": "fine"}
    assert isinstance(failed["input"].error, DataError)
    assert str(failed["input"].error) == "clean.npz: has no labels"
    assert isinstance(failed["value"].error, ValueError)
    assert "in go_wrong" in failed["value"].traceback
    assert isinstance(failed["untold"].error, WorkerError)
    assert str(failed["untold"].error).endswith("Untold: lost")
    assert isinstance(failed["exit"].error, WorkerError)
    # Warnings are errors in this process, so they are in its workers.
    assert isinstance(failed["warning"].error, UserWarning)
    assert not any(failure.retried for failure in failed.values())


def test_what_does_not_pickle_fails_alone() -> None:
    tasks = [Task("payload", lambda: None), Task("result", "result"), Task("fine", "fine")]
    events = list(LocalEngine(2).run(jobs.go_wrong, tasks))
    assert results(events) == {"fine": "fine"}
    assert "pickle" in str(failures(events)["payload"].error)
    assert str(failures(events)["result"].error) == "stays here"


@BOTH
def test_a_task_waits_for_those_it_comes_after(workers: int) -> None:
    tasks = [
        Task("last", 3, after=("middle", "first")),
        Task("middle", 2, after=("first",)),
        Task("first", 1),
    ]
    events = list(LocalEngine(workers).run(jobs.describe, tasks))
    order = [event.key for event in events if isinstance(event, Started | Finished)]
    assert order == ["first", "first", "middle", "middle", "last", "last"]


@BOTH
def test_what_comes_after_a_failure_is_not_begun(workers: int) -> None:
    tasks = [
        Task("input", "input"),
        Task("next", "fine", after=("input",)),
        Task("one after", "fine", after=("next",)),
        Task("apart", "fine"),
        Task("lost", "fine", after=("nowhere",)),
    ]
    events = list(LocalEngine(workers).run(jobs.go_wrong, tasks))
    failed = failures(events)
    assert results(events) == {"apart": "fine"}
    assert set(failed) == {"input", "next", "one after", "lost"}
    assert str(failed["next"].error) == "next: not begun, since input failed"
    assert isinstance(failed["one after"].error, EngineError)
    assert "nowhere" in str(failed["lost"].error)
    started = {event.key for event in events if isinstance(event, Started)}
    assert started == {"input", "apart"}


@BOTH
def test_a_task_can_do_without_those_it_is_only_behind(workers: int) -> None:
    tasks = [
        Task("last", "fine", behind=("input", "result of nothing")),
        Task("result of nothing", "fine", after=("input",)),
        Task("input", "input"),
    ]
    events = list(LocalEngine(workers).run(jobs.go_wrong, tasks))
    assert results(events) == {"last": "fine"}
    assert [event.key for event in events if isinstance(event, Started)] == ["input", "last"]


@BOTH
def test_tasks_may_be_decided_on_while_others_run(workers: int) -> None:
    so_far: dict[str, object] = {}

    def tasks() -> Iterator[Task]:
        yield Task("first", 1)
        yield Task("second", 2)
        yield Task("after what is done", 3, after=("first", "second"))
        # Pulled when a worker is free, and not before.
        assert so_far
        yield Task(f"beside {next(iter(so_far))}", 4)

    for event in LocalEngine(workers).run(jobs.describe, tasks()):
        if isinstance(event, Finished):
            so_far[event.key] = event.result
    assert len(so_far) == 4


@BOTH
def test_one_key_for_two_tasks_is_refused(workers: int) -> None:
    tasks = [Task("same", 1), Task("same", 2)]
    with pytest.raises(ConfigError, match="'same' twice"):
        list(LocalEngine(workers).run(jobs.describe, tasks))


def test_the_task_of_a_killed_worker_is_done_once_more(tmp_path: Path) -> None:
    tasks = [
        Task("dies once", (tmp_path / "once", 1)),
        Task("dies again", (tmp_path / "again", 9)),
        Task("lives", (tmp_path / "never", 0)),
    ]
    events = list(LocalEngine(2).run(jobs.die_first, tasks))
    assert results(events) == {"dies once": 2, "lives": 1}
    failed = failures(events)
    assert list(failed) == ["dies again"]
    assert failed["dies again"].retried
    assert isinstance(failed["dies again"].error, EngineError)
    assert "died 2 times, the last time by SIGKILL" in str(failed["dies again"].error)
    assert len(list((tmp_path / "again").iterdir())) == 2


def test_workers_compute_with_the_threads_they_are_given() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    (event,) = (
        event
        for event in LocalEngine(2, threads_per_worker=2).run(jobs.count_threads, [Task("one", 0)])
        if isinstance(event, Finished)
    )
    assert event.result == (2, "2")
    assert os.environ.get("OMP_NUM_THREADS") == before
    torch.set_num_threads(1)
    (event,) = (
        event
        for event in LocalEngine(1, threads_per_worker=2).run(jobs.count_threads, [Task("one", 0)])
        if isinstance(event, Finished)
    )
    assert event.result[0] == 2
    assert torch.get_num_threads() == 1


def test_closing_the_run_stops_the_workers(tmp_path: Path) -> None:
    tasks = [Task(name, tmp_path / name) for name in ("one", "other")]
    with contextlib.closing(LocalEngine(2).run(jobs.sleep_long, tasks)) as events:
        for event in events:
            if isinstance(event, Advanced):
                break
    pids = [int(path.read_text()) for path in tmp_path.iterdir() if path.read_text()]
    assert pids
    assert not any(is_alive(pid) for pid in pids)


def test_an_interrupt_stops_all_at_once_and_keeps_what_is_finished(tmp_path: Path) -> None:
    # As from a terminal: the interrupt goes to the program and to its workers.
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.interrupted", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A script in the background hands down an ignored SIGINT; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: all(has_begun(tmp_path / n) for n in ("quick", "one", "other")))
    pids = {n: int((tmp_path / n).read_text()) for n in ("one", "other")}
    os.killpg(program.pid, signal.SIGINT)
    started = time.monotonic()
    out, err = program.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert "Finished quick" in out
    assert out.endswith("interrupted\n")
    assert err == ""
    assert not any(is_alive(pid) for pid in pids.values())


def test_workers_do_not_outlive_a_killed_program(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.engines.interrupted", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: all(has_begun(tmp_path / n) for n in ("quick", "one", "other")))
    pids = [int((tmp_path / n).read_text()) for n in ("one", "other")]
    assert all(is_alive(pid) for pid in pids)
    program.kill()
    program.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("name", "workers", "threads"), [("cloud", 1, None), ("local", 0, None), ("local", 2, 0)]
)
def test_engines_that_cannot_be(name: str, workers: int, threads: int | None) -> None:
    with pytest.raises(ConfigError):
        open_engine(name, workers=workers, threads_per_worker=threads)


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_begun(sign: Path) -> bool:
    return sign.is_file() and sign.read_text() != ""


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
