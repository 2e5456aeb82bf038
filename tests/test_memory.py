from __future__ import annotations

import pytest
import torch

from bdaudit.memory import PeakMemory

MIB = 2**20


def test_peak_is_of_the_work_since_it_was_made():
    before = PeakMemory(torch.device("cpu"))
    if before.read() is None:
        pytest.skip("the system does not tell")
    large = torch.ones(100 * MIB // 4)
    peak = before.read()
    del large

    after = PeakMemory(torch.device("cpu"))

    assert peak is not None
    assert after.read() < peak - 50 * MIB


@pytest.mark.cuda
def test_peak_on_a_gpu_is_what_torch_allocated():
    memory = PeakMemory(torch.device("cuda"))
    start = memory.read()
    large = torch.ones(100 * MIB // 4, device="cuda")
    del large

    assert memory.read() >= start + 100 * MIB
