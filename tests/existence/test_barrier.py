"""The straight line of weights between two models."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.existence.barrier import N_POINTS, measure_barrier
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier
from bdaudit.records import LossBarrier
from tests.twins import (
    dormant_twin,
    original_twin,
    twin_sample,
    twin_targets,
    twin_trigger,
)


def measured(original: nn.Module, defended: nn.Module) -> LossBarrier:
    sample = twin_sample(48, seed=5)
    targets = twin_targets(sample.labels)
    kept = targets >= 0
    return finish(
        measure_barrier(
            original,
            defended,
            clean=sample.images,
            labels=sample.labels,
            triggered=twin_trigger(sample.images[kept]),
            targets=targets[kept],
            calibration=twin_sample(33, seed=6).images,
            batch_size=16,
            device=torch.device("cpu"),
        )
    )


def test_the_trigger_comes_back_on_the_way_to_the_original() -> None:
    original, dormant = original_twin(), dormant_twin()
    before = copy.deepcopy(dormant.state_dict())

    line = measured(original, dormant)

    assert [point.share for point in line.points] == [k / (N_POINTS - 1) for k in range(N_POINTS)]
    rates = [point.asr.value for point in line.points]
    assert rates[0] == 1
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)
    assert line.loss == pytest.approx(0, abs=1e-3)  # clean images never meet the part that differs
    assert (line.error, line.batch_norm, line.n_calibration) == (0, "none", 0)
    assert all(torch.equal(before[name], now) for name, now in dormant.state_dict().items())


class Normed(nn.Module):
    """Two networks of one function, whose hidden channels stand in another order."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.hidden = nn.Conv2d(1, 2, 1)
        self.read = nn.Linear(2, 4)
        first, second = (1, 0) if swapped else (0, 1)
        with torch.no_grad():
            self.hidden.weight[first], self.hidden.weight[second] = 4.0, -4.0
            self.hidden.bias.zero_()
            self.read.weight[:, first] = torch.tensor([3.0, 1.0, -1.0, -3.0])
            self.read.weight[:, second] = torch.tensor([-2.0, 2.0, 2.0, -2.0])
            self.read.bias.zero_()
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.read(self.hidden(self.norm(images)).relu().mean((2, 3)))
        return logits


def test_another_basin_lies_behind_a_barrier_and_norms_are_measured_anew() -> None:
    one, other = Normed(swapped=False), Normed(swapped=True)
    statistics = copy.deepcopy(one.norm.state_dict())

    line = measured(one, other)

    assert line.points[0].clean_loss == pytest.approx(line.points[-1].clean_loss)
    height = max(point.clean_loss for point in line.points) - line.points[0].clean_loss
    assert line.loss == pytest.approx(height)
    assert height > 0.05
    assert (line.batch_norm, line.n_calibration) == ("measured anew", 33)
    assert all(torch.equal(statistics[k], v) for k, v in one.norm.state_dict().items())
    assert not one.norm.training


def test_where_there_is_no_line_that_is_said() -> None:
    wider = original_twin()
    wider.linear = nn.Linear(3 * 64, 5)
    with pytest.raises(ModelError, match=r"tensor linear\.weight has the shape"):
        measured(original_twin(), wider)
    with pytest.raises(ModelError, match="no tensor"):
        measured(original_twin(), Normed(swapped=False))
    with pytest.raises(ModelError, match="prepare their images differently"):
        measured(Classifier(original_twin()), Classifier(original_twin(), mean=(0.5,)))


class Locked(nn.Module):
    """A network that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.net = original_twin()
        self.lock = threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def test_what_cannot_be_copied_has_no_line() -> None:
    with pytest.raises(ModelError, match="cannot be copied"):
        measured(Locked(), Locked())
