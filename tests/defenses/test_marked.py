"""On marked images no defence moves the box that a detector is asked about."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bdaudit.defenses import NcUnlearnConfig, SauConfig, nc_unlearn
from bdaudit.defenses.i_bau import IBauConfig, add_trigger, unlearn_worst_trigger
from bdaudit.defenses.sau import shared_perturbation
from bdaudit.defenses.synthesis import TriggerNetwork
from bdaudit.detection import is_marked, mark, pixels_of
from bdaudit.detection.small import small_detector
from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import finish


def marked() -> Tensor:
    pictures = torch.rand((6, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return mark(pictures, torch.tensor([[2.0, 2.0, 6.0, 7.0]]).expand(6, 4))


class Asked(nn.Module):
    """Answers marked images; refuses any whose box is not what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        assert is_marked(images)
        assert torch.equal(images[:, 3], marked()[: len(images), 3])
        logits: Tensor = self.head(pixels_of(images).mean((2, 3)))
        return logits


def test_perturbations_spare_the_marks() -> None:
    images = marked()
    stamped = add_trigger(images, torch.full((1, 4, 8, 8), 0.3))
    assert torch.equal(stamped[:, 3], images[:, 3])
    assert torch.allclose(pixels_of(stamped), (pixels_of(images) + 0.3).clamp(max=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = Asked().eval(), Asked().eval()
    labels = torch.arange(6) % 3
    shared_perturbation(first, second, images, labels, SauConfig())  # they look at every image
    network = TriggerNetwork((4, 8, 8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.common.fill_(1.0)
        changed = network(images)
    assert torch.equal(changed[:, 3], images[:, 3])
    assert not torch.equal(changed, images)


def test_neural_cleanse_knows_no_boxes_and_says_so() -> None:
    steps = nc_unlearn(
        Asked(),
        marked(),
        torch.arange(6) % 3,
        config=NcUnlearnConfig(),
        generator=torch.Generator().manual_seed(0),
    )
    with pytest.raises(ConfigError, match="an unknown one in a detector is not supported"):
        finish(steps)


def test_what_cannot_be_differentiated_twice_is_refused_in_plain_words() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = small_detector("fasterrcnn", 2, 3).eval().requires_grad_(False)
    pictures = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = mark(pictures, torch.tensor([[4.0, 4.0, 28.0, 28.0]]).expand(4, 4))
    steps = unlearn_worst_trigger(
        detector,
        images,
        torch.arange(4) % 3,
        config=IBauConfig(n_rounds=1, batch_size=4),
        generator=torch.Generator().manual_seed(0),
    )
    with pytest.raises(ModelError, match="differentiated twice"):
        finish(steps)
