"""MM-BD on networks whose maximum margins are known, and its null against a count of draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.inversion.maximum_margin import (
    MaximumMarginConfig,
    MaximumMargins,
    find_maximum_margins,
    hold_against_gamma,
)
from tests.inversion.nets import PixelNet

SIZES = (5.0, 6.0, 7.0, 6.5, 5.5, 60.0)


def margins(net: nn.Module, *, classes: int = len(SIZES), **changes: object) -> MaximumMargins:
    settings: dict[str, object] = {
        "image_shape": (1, 2, 4),
        "num_classes": classes,
        "config": MaximumMarginConfig(),
        "seed": 0,
        "batch_size": 512,
    }
    return finish(find_maximum_margins(net, **{**settings, **changes}))  # type: ignore[arg-type]


def test_each_class_comes_to_its_own_largest_margin() -> None:
    # The largest margin of class k is what its own pixel gives, with all the others at 0.
    found = margins(PixelNet(SIZES))
    assert found.statistics.tolist() == pytest.approx(SIZES, rel=1e-3)
    assert bool((found.starts < found.statistics).all())
    assert found.still == ()
    assert max(found.steps) < 300  # all of them stand still before


def test_a_margin_never_leaves_the_pixels_that_an_image_has() -> None:
    # Twice the steps would go on past 1 if the pixels were not held there.
    longer = MaximumMarginConfig(n_steps=600, tolerance=0.0)
    assert margins(PixelNet(SIZES), config=longer).statistics.tolist() == pytest.approx(SIZES)


def test_what_a_class_comes_to_does_not_hang_on_its_batch() -> None:
    # Far from the end, where draws and path still show.
    short = MaximumMarginConfig(n_steps=5)
    whole = margins(PixelNet(SIZES), config=short)
    apart = margins(PixelNet(SIZES), config=short, batch_size=1)
    assert torch.allclose(whole.statistics, apart.statistics)
    assert whole.steps == apart.steps
    assert not torch.allclose(
        whole.statistics, margins(PixelNet(SIZES), config=short, seed=1).statistics
    )


def test_classes_that_stand_still_leave_the_batch() -> None:
    every = margins(PixelNet(SIZES), config=MaximumMarginConfig(tolerance=0.0))
    found = margins(PixelNet(SIZES))
    assert found.differentiated == 30 * sum(steps + 1 for steps in found.steps)
    assert found.differentiated < every.differentiated <= 6 * 30 * 300
    assert torch.allclose(every.statistics, found.statistics, rtol=1e-3)


def test_the_class_that_stands_alone_is_told() -> None:
    null = hold_against_gamma(margins(PixelNet(SIZES)).statistics)
    assert null.label == 5
    assert null.p_value is not None
    assert null.p_value < 0.02
    assert null.published is not None
    assert null.published < 1e-6
    even = hold_against_gamma(margins(PixelNet((5.0, 6.0, 7.0, 6.5, 5.5, 7.5))).statistics)
    assert even.label == 5
    assert even.p_value is not None
    assert even.p_value > 0.05


def test_the_published_p_value_is_the_share_of_draws_whose_largest_is_as_large() -> None:
    null = hold_against_gamma(torch.tensor([3.0, 4.0, 5.0, 6.0, 9.0]))
    shape, _, scale = stats.gamma.fit([3.0, 4.0, 5.0, 6.0], floc=0)  # of the others alone
    assert (null.shape, null.scale) == pytest.approx((shape, scale), rel=1e-6)
    draws = np.random.default_rng(0).gamma(shape, scale, size=(200_000, 5))
    assert null.published == pytest.approx((draws.max(1) >= 9.0).mean(), abs=0.005)


@pytest.mark.parametrize(("n_classes", "shape"), [(4, 3.0), (10, 0.7), (10, 1e6), (100, 7.0)])
def test_models_whose_margins_come_from_one_gamma_are_suspected_as_often_as_the_limit_says(
    n_classes: int, shape: float
) -> None:
    draws = np.random.default_rng(1).gamma(shape, 2.0, size=(400, n_classes))
    nulls = [hold_against_gamma(torch.tensor(row)) for row in draws]
    found = [null.p_value for null in nulls if null.p_value is not None]
    assert len(found) == 400
    assert np.mean([p <= 0.05 for p in found]) == pytest.approx(0.05, abs=0.035)
    assert np.mean([p <= 0.5 for p in found]) == pytest.approx(0.5, abs=0.08)


def test_the_published_p_value_suspects_a_quarter_of_models_with_ten_classes() -> None:
    draws = np.random.default_rng(2).gamma(3.0, 2.0, size=(400, 10))
    nulls = [hold_against_gamma(torch.tensor(row)) for row in draws]
    published = np.mean([null.published <= 0.05 for null in nulls])  # type: ignore[operator]
    assert published == pytest.approx(0.26, abs=0.07)


def test_a_tail_below_the_least_number_is_still_told() -> None:
    null = hold_against_gamma(torch.tensor([5.0, 6.0, 7.0, 8.0, 1e30]))
    assert null.published == 0.0
    assert null.p_value is not None
    assert 0 < null.p_value < 0.001


def test_a_p_value_does_not_hang_on_the_scale_of_the_logits() -> None:
    statistics = torch.tensor([3.0, 4.0, 5.0, 6.0, 20.0])
    small, large = (hold_against_gamma(statistics * scale).p_value for scale in (0.01, 1000.0))
    assert small == pytest.approx(large, rel=1e-4)


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        ([1.0, 2.0, 9.0], "3 classes: the null is fitted to all but one of them"),
        ([5.0, -1.0, 3.0, 0.0, 2.0], "2 of 5 classes could not be made the model's answer"),
        ([7.0, 7.0, 7.0, 90.0, 7.0], "all alike"),
    ],
)
def test_there_is_no_p_value_where_no_null_can_be_fitted(
    statistics: list[float], said: str
) -> None:
    null = hold_against_gamma(torch.tensor(statistics))
    assert null.p_value is None
    assert null.shape is None
    assert null.reason is not None
    assert said in null.reason


def test_a_model_without_a_gradient_is_said() -> None:
    class Saturated(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return (1e6 * super().forward(images)).clamp(-1, 1)

    assert margins(Saturated(SIZES)).still != ()

    class Rounded(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).detach()

    with pytest.raises(ModelError, match="gradients flow, got none"):
        margins(Rounded(SIZES))


def test_logits_that_are_not_finite_are_said() -> None:
    class Overflowing(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.tensor(3e38) * 10

    with pytest.raises(NumericsError, match="expected finite logits"):
        margins(Overflowing(SIZES))

    class Cornered(PixelNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + (images.flatten(1)[:, :1] * 0.0).sqrt()

    with pytest.raises(NumericsError, match="a gradient was not finite"):
        margins(Cornered(SIZES))


@pytest.mark.parametrize(
    "change",
    [
        {"n_images": 0}, {"n_steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0},
        {"tolerance": -1.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="maximum margin"):
        replace(MaximumMarginConfig(), **change)


@pytest.mark.cuda
def test_a_gpu_comes_to_the_same() -> None:
    net = PixelNet(SIZES)
    here = margins(net)
    there = margins(net.cuda(), device="cuda")
    assert torch.allclose(here.statistics, there.statistics, rtol=1e-3)
