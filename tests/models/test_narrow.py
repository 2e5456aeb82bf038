"""Narrow networks on images with the channels last in memory: gradients that stay in their buffers.

Where a strided 1x1 convolution has few channels, and they lie last in its input or in its weights,
oneDNN writes its gradient outside the buffer: training ended in wrong weights or in a crash,
depending on the processor (https://github.com/uxlfoundation/oneDNN/issues/6035).
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.defenses.tuning import TuningConfig, trainable_copy, tune
from bdaudit.foundation.progress import finish
from bdaudit.models import preactresnet18, training_order, wrap_module
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.zoo.training import gradients_in
from tests.twins import twin_sample

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
    # Threads that wait for one another by spinning starve where others use the processors too.
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
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


# --- networks of the user, which are built of torch's own convolutions


class Shrinking(nn.Module):
    """A user's narrow network: its strided 1x1 convolution is torch's own."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.shrink = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
        self.linear = nn.Linear(2 * channels * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.relu(self.stem(images))
        if torch.is_grad_enabled():
            ORDERS.add((maps.stride()[1] == 1, self.shrink.weight.stride()[3] != 1))
        shrunk = self.shrink(maps)
        scores: Tensor = self.linear(torch.flatten(shrunk, 1))
        return scores


# Of every training pass: whether channels lay last in the input, and whether in the weights.
ORDERS: set[tuple[bool, bool]] = set()


@pytest.mark.parametrize(
    ("layer", "hit"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(64, 64, 1, stride=2, groups=32), True),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
        (nn.Conv2d(64, 128, 1, stride=2), False),
        (preactresnet18(10, width=4), False),
    ],
    ids=str,
)
def test_which_networks_keep_their_channels_first(layer: nn.Module, *, hit: bool) -> None:
    order = torch.contiguous_format if hit else torch.channels_last
    assert training_order(nn.Sequential(layer), "cpu") is order
    assert training_order(layer, "cuda") is torch.channels_last


def train_by_stand_ins(lessons: str) -> Callable[[], None]:
    def train() -> None:
        model = wrap_module(Shrinking(), name="original", image_shape=(1, 8, 8))
        config = StandInConfig(lessons=lessons, n_images=40)  # type: ignore[arg-type]
        draw = torch.Generator().manual_seed(0)
        steps = make_stand_ins(model, twin_sample(40, 0), count=1, config=config, generator=draw)
        finish(steps)

    return train


def train_for_a_family() -> None:
    sample, network = twin_sample(40, 0), Shrinking()
    order = training_order(network, "cpu")
    gradients_in("float32")(network.to(memory_format=order), sample.images, sample.labels)


def tune_what_came_channels_last() -> None:
    sample = twin_sample(40, 0)
    given = Shrinking().to(memory_format=torch.channels_last)
    config = TuningConfig(n_epochs=1)
    draw = torch.Generator().manual_seed(0)
    copied = trainable_copy(given)
    finish(
        tune(copied, sample.images, sample.labels, config=config, generator=draw, title="tuning")
    )
    assert given.shrink.weight.stride() == (4, 1, 4, 4)  # left as it came


@pytest.mark.parametrize(
    "train",
    [
        train_by_stand_ins("answers"),
        train_by_stand_ins("labels"),
        train_for_a_family,
        tune_what_came_channels_last,
    ],
    ids=["stand-in by answers", "stand-in by labels", "zoo", "tuning"],
)
def test_narrow_networks_of_users_are_trained_with_channels_first(
    train: Callable[[], None],
) -> None:
    ORDERS.clear()
    train()
    assert {(False, False)} == ORDERS
