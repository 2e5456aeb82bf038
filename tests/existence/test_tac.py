"""TAC against plain loops, and the pass that keeps a shortlist on its way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bdaudit.errors import NumericsError
from bdaudit.existence.passes import PassOptions
from bdaudit.existence.tac import ActivityTotals, count_kept, measure_tac, top_channels

CPU = torch.device("cpu")


def options(batch_size: int) -> PassOptions:
    return PassOptions(device=CPU, batch_size=batch_size, precision="float32", channels_last=False)


def drain(steps):
    batches = []
    while True:
        try:
            batches.append(next(steps))
        except StopIteration as stop:
            return stop.value, batches


def tac_by_loop(clean: Tensor, triggered: Tensor) -> list[float]:
    """The definition, one channel and one image at a time; maps (N, C, H, W)."""
    values = []
    for channel in range(clean.shape[1]):
        change = activity = 0.0
        for a, b in zip(clean[:, channel], triggered[:, channel], strict=True):
            change += float((a.double() - b.double()).pow(2).sum()) ** 0.5
            activity += float(a.double().pow(2).sum()) ** 0.5 / 2
            activity += float(b.double().pow(2).sum()) ** 0.5 / 2
        values.append(change / activity if activity else 0.0)
    return values


def test_by_hand() -> None:
    # One channel, one image: (3, 4) becomes (3, 0): change 4, activity (5 + 3) / 2.
    totals = ActivityTotals()
    totals.add(torch.tensor([[[3.0], [4.0]], [[3.0], [0.0]]]))
    assert totals.tac().tolist() == [1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_any_batch_size_equals_the_definition(batch_size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    clean = torch.rand(13, 2, 9, 9, generator=draw)
    triggered = clean.clone()
    triggered[:, :, -2:, -2:] = 1.0
    (tac, stash), batches = drain(
        measure_tac(net, {"2": 3}, ("0",), clean, triggered, options(batch_size))
    )
    assert sum(batches) == 26
    with torch.no_grad():
        middle, last = net[0](clean), net(clean)
        middle_triggered, last_triggered = net[0](triggered), net(triggered)
    assert tac["0"].tolist() == pytest.approx(tac_by_loop(middle, middle_triggered), rel=1e-5)
    assert tac["2"].tolist() == pytest.approx(tac_by_loop(last, last_triggered), rel=1e-5)
    assert set(stash) == {"2"}
    channels, maps = stash["2"]
    torch.testing.assert_close(maps, last_triggered[:, channels].flatten(2).transpose(1, 2))


def test_a_dead_channel_is_never_ahead_of_a_live_one() -> None:
    totals = ActivityTotals()
    clean = torch.rand(5, 4, 3) + 0.1
    clean[:, :, 1] = 0
    triggered = clean * torch.tensor([1.5, 1.0, 1.1])
    totals.add(torch.cat([clean, triggered]))
    assert totals.tac()[1] == 0
    assert top_channels(totals.tac(), 2).tolist() == [0, 2]


def test_ties_go_to_the_lower_index() -> None:
    assert top_channels(torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("channels", "share", "kept"),
    [(64, 0.10, 6), (5, 0.10, 1), (1, 0.05, 1), (100, 0.29, 29), (100, 0.07, 7), (30, 1.0, 30)],
)
def test_count_kept(channels: int, share: float, kept: int) -> None:
    assert count_kept(channels, share) == kept


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_tac_is_relative_and_at_most_two(scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    clean, triggered = torch.randn(2, 6, 5, 4, generator=draw)
    one, other = ActivityTotals(), ActivityTotals()
    one.add(torch.cat([clean, triggered]))
    other.add(torch.cat([clean, triggered]) * scale)
    torch.testing.assert_close(one.tac(), other.tac(), rtol=1e-4, atol=0)
    assert bool((one.tac() <= 2).all())


def test_an_activation_that_is_not_finite_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1))
    with torch.no_grad():
        net[1].weight[1] = float("nan")
    images = torch.rand(4, 1, 3, 3)
    with pytest.raises(NumericsError, match="layer 1 "):
        drain(measure_tac(net, {"0": 1, "1": 1}, (), images, images, options(4)))
