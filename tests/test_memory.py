from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from bdaudit.foundation.memory import PeakMemory

MIB = 2**20
_TWO_PEAKS = """
import json
import torch
from bdaudit.foundation.memory import PeakMemory

before = PeakMemory(torch.device("cpu"))
large = torch.ones(100 * 2**20 // 4)
peak = before.read()
del large
after = PeakMemory(torch.device("cpu"))
print(json.dumps([peak, after.read()]))
"""


def test_peak_is_of_the_work_since_it_was_made():
    # In a process of its own: what a long test run has freed may stay resident.
    result = subprocess.run([sys.executable, "-c", _TWO_PEAKS], capture_output=True, check=True)
    first, second = json.loads(result.stdout)
    if second is None:
        pytest.skip("the system does not tell")

    assert second < first - 50 * MIB


@pytest.mark.cuda
def test_peak_on_a_gpu_is_what_torch_allocated():
    memory = PeakMemory(torch.device("cuda"))
    start = memory.read()
    large = torch.ones(100 * MIB // 4, device="cuda")
    del large

    assert memory.read() >= start + 100 * MIB
