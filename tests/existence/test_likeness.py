"""Likeness of what models make of their own versions of the same images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bdaudit.existence import ExistenceConfig
from bdaudit.existence.likeness import Onlooker, activation_likeness
from bdaudit.foundation.progress import finish
from tests.twins import dormant_twin, original_twin, twin_sample, twin_trigger


def test_likeness_compares_each_with_its_own_images() -> None:
    clean = twin_sample(40, seed=3).images
    triggered = twin_trigger(clean)
    original = original_twin()
    other_shape = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))

    same, shown_others, asleep, misfit = finish(
        activation_likeness(
            original,
            [
                Onlooker("itself", original, triggered),
                Onlooker("itself, other pictures", original, triggered.flip(0)),
                Onlooker("dormant", dormant_twin(), triggered),
                Onlooker("another", other_shape, triggered),
            ],
            clean=clean,
            triggered=triggered,
            config=ExistenceConfig(batch_size=16),
            device=torch.device("cpu"),
        )
    )

    assert isinstance(same, dict)
    assert isinstance(shown_others, dict)
    assert isinstance(asleep, dict)
    assert same == pytest.approx(dict.fromkeys(same, 1.0))
    assert max(shown_others.values()) < 0.9
    assert same.keys() == asleep.keys()
    assert isinstance(misfit, str)
    assert "has no layer" in misfit
