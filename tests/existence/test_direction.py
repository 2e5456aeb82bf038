"""The linear backdoor direction of a transformer whose weights are set by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bdaudit.errors import ModelError
from bdaudit.existence import ExistenceConfig
from bdaudit.existence.direction import backdoor_direction, transformer_layers
from bdaudit.foundation.progress import finish
from bdaudit.records import BackdoorDirection
from tests.twins import original_twin

WIDTH = 8


class OneBlock(nn.Module):
    """A patch embedding, the MLP of one block, and a head; the first pixel drives one feature."""

    def __init__(self, *, strength: float, feature: int = 0) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, WIDTH, 2, stride=2, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 3)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.patch_embed.weight[0, 0, 0, 0] = 1.0
            self.patch_embed.weight[1, 0, 1, 1] = 1.0
            self.mlp[0].weight[:2, :2] = torch.eye(2)
            self.mlp[2].weight[feature, 0] = strength
            self.mlp[2].weight[7, 1] = 1.0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head((tokens + self.mlp(tokens)).mean(1))
        return logits


def measured(defended: nn.Module, *references: nn.Module) -> BackdoorDirection:
    clean = torch.rand(31, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    triggered = clean.clone()
    triggered[:, :, 0, 0] = 1.0
    return finish(
        backdoor_direction(
            OneBlock(strength=2.0),
            defended,
            references,
            clean=clean,
            triggered=triggered,
            config=ExistenceConfig(batch_size=4),
            device=torch.device("cpu"),
        )
    )


def test_what_is_left_of_the_direction_is_its_cosine_and_its_strength() -> None:
    half, elsewhere = OneBlock(strength=1.0), OneBlock(strength=2.0, feature=3)

    kept, turned = measured(half, elsewhere), measured(elsewhere, half)

    assert [layer.layer for layer in kept.layers] == ["mlp.2"]
    assert (kept.cosine, kept.strength) == (pytest.approx(1.0), pytest.approx(0.5))
    assert kept.halves == pytest.approx(1.0, abs=1e-3)
    assert (kept.innocent, kept.n_innocent) == (pytest.approx(0.0), 1)
    assert (turned.cosine, turned.strength) == (pytest.approx(0.0), pytest.approx(0.0))
    assert turned.innocent == pytest.approx(1.0)
    assert kept.n_samples == 31


def test_a_model_that_nothing_moves_keeps_none_of_it() -> None:
    dead = measured(OneBlock(strength=0.0))
    assert (dead.cosine, dead.strength, dead.innocent) == (0.0, 0.0, None)


def test_other_networks_have_none() -> None:
    assert transformer_layers(original_twin(), ExistenceConfig()) == ()
    with pytest.raises(ModelError, match="no layer"):
        measured(original_twin())
