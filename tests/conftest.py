"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bdaudit.auditing.demo import export_demo
from bdaudit.foundation.cache import CACHE_VARIABLE
from tests.slow_tests import is_listed, listed

# Tiny tensors gain nothing from threads, and tests then run alike beside other work; so do the
# commands that tests start. A number set from outside holds.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

_MOST_WORKERS = 8  # each holds half a gigabyte, and the longest files end no sooner with more


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests, and the commands they start, out of the user's cache."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("cache"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Take one worker a processor for whole folders, and none where only files are named."""
    if all(Path(argument.split("::")[0]).suffix == ".py" for argument in config.args):
        return 0
    usable = getattr(os, "sched_getaffinity", None)
    processors = len(usable(0)) if usable is not None else os.cpu_count() or 1
    return min(processors, _MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests and put their files first; leave out `cuda` tests without such a device.

    Files are dealt out to workers whole; one that takes long should not be the last to begin.
    """
    names = listed()
    for item in items:
        if is_listed(item.nodeid, names):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's files, exported once; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("demo") / "files"
    export_demo(folder)
    return folder
