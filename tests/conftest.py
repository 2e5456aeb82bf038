"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bdaudit.auditing.demo import export_demo
from bdaudit.cache import CACHE_VARIABLE

# Tiny tensors gain nothing from threads, and tests then run alike beside other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests, and the commands they start, out of the user's cache."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests marked `cuda` where there is no CUDA device."""
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
