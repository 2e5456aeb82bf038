"""On marked images no defence moves the box that a detector is asked about."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bdaudit.defenses.pictures as pictures_module
from bdaudit.defenses import NcUnlearnConfig, SauConfig, nc_unlearn
from bdaudit.defenses.catalogue import DEFENSES, defense_config
from bdaudit.defenses.i_bau import IBauConfig, add_trigger, unlearn_worst_trigger
from bdaudit.defenses.sau import shared_perturbation
from bdaudit.defenses.synthesis import TriggerNetwork
from bdaudit.detection import as_asked, is_marked, mark, pixels_of
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


@pytest.mark.parametrize("method", ["finetune", "ft-sam", "fine-pruning", "tsbd", "seam"])
def test_a_detector_is_tuned_on_whole_pictures(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own losses, on each picture once an epoch and with all its objects."""
    pictures = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[2.0, 2, 14, 14], [16, 4, 30, 20], [2, 18, 12, 30]])
    images = mark(pictures.repeat_interleave(3, 0), boxes.repeat(4, 1))
    labels = torch.tensor([1, 2, 0] * 4)
    shown = list[tuple[Tensor, Tensor]]()
    losses = pictures_module.own_losses

    def watched(model: nn.Module, seen: list[Tensor], objects: list[dict[str, Tensor]]) -> Tensor:
        shown.extend((one, there["labels"]) for one, there in zip(seen, objects, strict=True))
        return losses(model, seen, objects)

    monkeypatch.setattr(pictures_module, "own_losses", watched)
    network = small_detector("fcos", 4, 3)
    tuned = finish(
        DEFENSES[method].run(
            as_asked(network),
            images,
            labels,
            config=defense_config(method, {"tuning": {"n_epochs": 1, "batch_size": 2}}),
            generator=torch.Generator().manual_seed(1),
        )
    )
    passes = 2 if method in ("ft-sam", "tsbd") else 1
    assert len(shown) == 4 * passes
    for picture, found in shown:
        assert any(torch.equal(picture, p) or torch.equal(picture, p.flip(-1)) for p in pictures)
        assert found.tolist() == [1, 2]
    assert tuned(images[:2]).shape == (2, 3)


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
