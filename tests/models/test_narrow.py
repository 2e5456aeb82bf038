"""Narrow networks on images with the channels last in memory: gradients that stay in their buffers.

Where a strided 1x1 convolution has few channels, and they lie last in its input or in its weights,
oneDNN writes its gradient outside the buffer: training ended in wrong weights or in a crash,
depending on the processor (https://github.com/uxlfoundation/oneDNN/issues/6035).
"""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from bdaudit.models import preactresnet18

GRADIENTS = """
import torch
from torch.nn import functional
from bdaudit.models import preactresnet18

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
images = torch.rand((30, 3, 16, 16), generator=draw)
labels = torch.arange(30) % 10
orders = torch.contiguous_format, torch.channels_last
for width in (2, 4, 12):
    torch.manual_seed(0)
    network = preactresnet18(10, width=width).eval()
    parameters = list(network.parameters())
    found = []
    for of_weights in orders:
        network.to(memory_format=of_weights)
        for of_images in orders:
            for _ in range(4):
                shown = images.to(memory_format=of_images)
                loss = functional.cross_entropy(network(shown), labels)
                found.append(torch.autograd.grad(loss, parameters))
    loss = functional.cross_entropy(network.double()(images.double()), labels)
    wanted = torch.autograd.grad(loss, list(network.parameters()))
    for gradients in found:
        for single, double in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-5)
print("sound")
"""


def test_gradients_are_those_in_double_precision():
    # A process of its own, which alone would end if memory were overwritten.
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "sound"), done.stderr[-500:]


@pytest.mark.parametrize("width", [4, 16])
def test_shortcuts_compute_a_strided_convolution(width):
    network = preactresnet18(10, width=width)
    seen = []
    for block in network.modules():
        if getattr(block, "shortcut", None) is not None:
            block.shortcut[0].register_forward_hook(lambda *call: seen.append(call))
    network(torch.rand(4, 3, 17, 16))
    assert [layer.stride for layer, _, _ in seen] == [(2, 2)] * 3
    for layer, (given,), answered in seen:
        strided = functional.conv2d(given, layer.weight, stride=2)
        torch.testing.assert_close(answered, strided, rtol=1e-4, atol=1e-5)
