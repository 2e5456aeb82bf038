"""The engine on a real Ray: of this machine, and of two nodes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bdaudit.engines import Advanced, Event, Failed, Finished, RayEngine, Started, Task, open_engine
from bdaudit.errors import ConfigError, DataError, EngineError, ResourceError
from tests.engines import jobs
from tests.engines.test_local import failures, has_begun, is_alive, results, wait_for


def test_ray_is_not_imported_unless_it_is_used() -> None:
    program = "import sys, bdaudit.cli, bdaudit.engines; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0},
        {"threads_per_worker": 0},
        {"gpus_per_task": 1.5},
        {"gpus_per_task": -1.0},
        {"start_limit_s": 0.0},
    ],
)
def test_what_ray_cannot_be_asked_for(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        open_engine("ray", **settings)


@pytest.mark.parametrize("setting", ["gpus_per_task", "start_limit_s"])
def test_what_is_rays_alone_is_not_ignored(setting: str) -> None:
    with pytest.raises(ConfigError, match="only the engine ray"):
        open_engine("local", **{setting: 1.0})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine with two processors, started once for the tests below."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
    )
    yield ray
    ray.shutdown()


def hold_on() -> None:
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_every_task_finishes_once_with_the_shared_data() -> None:
    tasks = [Task(f"task {n}", n) for n in range(6)]
    tasks.append(Task("last", 6, after=tuple(task.key for task in tasks)))
    events = list(RayEngine(2).run(jobs.describe, tasks, shared=["data"]))
    finished = [event for event in events if isinstance(event, Finished)]
    assert sorted((e.result[0], e.result[2]) for e in finished) == [
        (n * n, ["data"]) for n in range(7)
    ]
    assert finished[-1].key == "last"
    assert os.getpid() not in {event.result[1] for event in finished}
    for task in tasks:
        kinds = [type(event) for event in events if event.key == task.key]
        assert kinds.count(Finished) == 1
        assert kinds[0] is Started


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_progress_comes_while_tasks_run(tmp_path: Path) -> None:
    # Each waits for the sign of the other, so both run at once, and long enough to be heard of.
    one, other = tmp_path / "one", tmp_path / "other"
    tasks = [Task("one", (one, [other])), Task("other", (other, [one, tmp_path / "heard"]))]
    over = False
    for event in RayEngine(2).run(jobs.wait_until_there, tasks, shared=30.0):
        if isinstance(event, Advanced) and event.key == "other":
            assert event.progress.step == "waiting"
            assert not over
            (tmp_path / "heard").touch()  # or it would wait for ever
        over = over or (isinstance(event, Finished) and event.key == "other")
    assert over


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_failures_and_lost_workers(tmp_path: Path) -> None:
    wrong = [Task(n, n) for n in ("input", "value", "exit", "warning", "fine")]
    events = list(RayEngine(2).run(jobs.go_wrong, wrong))
    failed = failures(events)
    assert results(events) == {"fine": "fine"}
    assert isinstance(failed["input"].error, DataError)
    assert isinstance(failed["value"].error, ValueError)
    assert "in go_wrong" in failed["value"].traceback
    assert isinstance(failed["warning"].error, UserWarning)

    dying = [
        Task("dies once", (tmp_path / "once", 1)),
        Task("dies again", (tmp_path / "again", 9)),
        Task("lives", (tmp_path / "never", 0)),
    ]
    events = list(RayEngine(2).run(jobs.die_first, dying))
    assert results(events) == {"dies once": 2, "lives": 1}
    (lost,) = failures(events).values()
    assert lost.key == "dies again"
    assert lost.retried
    assert isinstance(lost.error, EngineError)
    assert "lost 3 times" in str(lost.error)
    assert len(list((tmp_path / "again").iterdir())) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_leaving_a_run_stops_its_tasks(tmp_path: Path) -> None:
    with contextlib.closing(
        RayEngine(1).run(jobs.sleep_long, [Task("sleeper", tmp_path / "sleeper")])
    ) as events:
        for _ in events:
            if has_begun(tmp_path / "sleeper"):
                break
    pid = int((tmp_path / "sleeper").read_text())
    wait_for(lambda: not is_alive(pid))


@pytest.mark.slow
def test_nothing_free_is_an_error_and_not_a_wait_without_end(ray: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    engine = RayEngine(1, gpus_per_task=0.5, start_limit_s=1.0)
    with pytest.raises(ResourceError, match=r"GPU: a task takes 0\.5, 0 of 0 free"):
        list(engine.run(jobs.describe, [Task("one", 1)]))
    # Two processors, and somebody else has them.
    hold = ray.remote(num_cpus=2)(hold_on).remote()
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) == 0.0)
    with pytest.raises(ResourceError, match="CPU: a task takes 1, 0 of 2 free"):
        list(RayEngine(1, start_limit_s=1.0).run(jobs.describe, [Task("one", 1)]))
    assert time.monotonic() - started < 30
    ray.cancel(hold, force=True)


@pytest.mark.slow
def test_a_node_that_goes_away_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()  # of the tests before
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **store}
    )
    try:
        alone = RayEngine(address=cluster.address).run(jobs.describe, [Task("one", 3)])
        assert [e.result[0] for e in alone if isinstance(e, Finished)] == [9]
        assert not ray.is_initialized()
        # Connected while there is one node only: it is the other that goes away.
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        other = cluster.add_node(num_cpus=1, **store)
        cluster.wait_for_nodes()
        going, done = tmp_path / "going", tmp_path / "done"
        going.mkdir()
        done.mkdir()
        tasks = [Task(f"task {n}", (going, done, 2)) for n in range(5)]
        events: list[Event] = []
        gone = threading.Event()

        def take_the_node_away() -> None:
            # Until two are under way at once; a worker may begin when another has done several.
            wait_for(lambda: len(list(going.iterdir())) - len(list(done.iterdir())) >= 2)
            cluster.remove_node(other, allow_graceful=False)
            gone.set()

        thread = threading.Thread(target=take_the_node_away)
        thread.start()
        events += RayEngine(2, start_limit_s=60.0).run(jobs.work_for, tasks, shared=None)
        thread.join()
        assert gone.is_set()
        finished = [event.key for event in events if isinstance(event, Finished)]
        assert sorted(finished) == [task.key for task in tasks]
        assert not any(isinstance(event, Failed) for event in events)
        begun = [event.key for event in events if isinstance(event, Started)]
        # One of the two under way was on the node that went away.
        assert sorted(begun.count(task.key) for task in tasks) == [1, 1, 1, 1, 2]
    finally:
        ray.shutdown()
        cluster.shutdown()
