"""Narrow networks on images with the channels last in memory: gradients that stay in their buffers.

Where a strided 1x1 convolution has few channels, and they lie last, oneDNN writes its gradient
outside the buffer (https://github.com/uxlfoundation/oneDNN/issues/6035): training ended in wrong
weights or in a crash, depending on the processor.
"""

import subprocess
import sys

import pytest
import torch

from bdaudit.models import preactresnet18

TRAINING = """
import torch
from torch.nn import functional
from bdaudit.models import preactresnet18

draw = torch.Generator().manual_seed(0)
images = torch.rand((30, 3, 16, 16), generator=draw).to(memory_format=torch.channels_last)
labels = torch.arange(30) % 10
for width in (2, 4, 8, 12):
    torch.manual_seed(0)
    network = preactresnet18(10, width=width).eval()
    parameters = list(network.parameters())
    for _ in range(8):
        loss = functional.cross_entropy(network(images), labels)
        found = torch.autograd.grad(loss, parameters)
    loss = functional.cross_entropy(network.double()(images.double()), labels)
    for single, double in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-5)
print("sound")
"""


def test_gradients_are_those_in_double_precision():
    # A process of its own, which alone would end if memory were overwritten.
    done = subprocess.run(
        [sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "sound"), done.stderr[-500:]


@pytest.mark.parametrize("width", [2, 12])
def test_shortcuts_get_their_input_in_the_order_of_its_dimensions(width):
    network = preactresnet18(10, width=width)
    orders = []
    for block in network.modules():
        if getattr(block, "shortcut", None) is not None:
            block.shortcut[0].register_forward_hook(
                lambda layer, inputs, output: orders.append(inputs[0].is_contiguous())
            )
    network(torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last))
    assert orders == [True] * 3
