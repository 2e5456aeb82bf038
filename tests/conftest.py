"""What holds for all tests."""

from __future__ import annotations

import pytest
import torch

# Tiny tensors gain nothing from threads, and tests then run alike beside other work.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests marked `cuda` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
