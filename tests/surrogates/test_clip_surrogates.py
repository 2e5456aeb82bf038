"""Surrogates of a CLIP: the image tower is tuned against text embeddings that stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdaudit.data import from_arrays
from bdaudit.defenses import (
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    TuningConfig,
)
from bdaudit.defenses.layers import last_feature_layer
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import Progress, finish
from bdaudit.models import Classifier, LoadedModel, ZeroShotNetwork, wrap_module
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.relatives.surrogates import SurrogateConfig, make_surrogates
from tests.clips import new_clip
from tests.twins import twin_sample

TUNING = TuningConfig(learning_rate=0.02, n_epochs=4, batch_size=20)


def clip_model(tower: str = "vit") -> LoadedModel:
    side = {"vit": 8, "rn": 32}[tower]
    texts = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    network = ZeroShotNetwork(
        new_clip(tower).visual,
        functional.normalize(texts, dim=1),
        logit_scale=10.0,
        image_size=(side, side),
        build_visual=lambda: new_clip(tower).visual,
    )
    classifier = Classifier(network, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(side, side))
    return wrap_module(classifier, name="original", image_shape=(1, 8, 8))


def test_a_defence_that_does_not_apply_is_left_out_with_its_reason(tmp_path: Path) -> None:
    original, sample = clip_model(), twin_sample(40, seed=2)
    craft = from_arrays(sample.images, sample.labels)
    config = SurrogateConfig(
        defenses=(
            FstConfig(tuning=TUNING),
            FinetuneConfig(tuning=TUNING),
            FtSamConfig(tuning=TUNING),
            FinePruningConfig(tuning=TUNING),
        )
    )
    events: list[Progress] = []
    steps = make_surrogates(
        original,
        craft,
        config=config,
        generator=torch.Generator().manual_seed(0),
        cache_dir=tmp_path,
    )
    made = finish(steps, events.append)
    assert [model.name for model in made] == [
        "surrogate 2 (fine-tuning)",
        "surrogate 3 (FT-SAM)",
        "surrogate 4 (fine-pruning)",
    ]
    reason = "left out FST: expected a network that ends in a linear layer, got a CLIP"
    assert all(model.notes[-1].startswith(reason) for model in made)
    assert any(event.note.startswith(reason) for event in events)
    assert events[-1].done == events[-1].total == 4
    before = original.network
    with torch.no_grad():
        gained = [
            functional.cross_entropy(original.classifier(craft.images), craft.labels)
            - functional.cross_entropy(model.classifier(craft.images), craft.labels)
            for model in made
        ]
    assert all(gain > 0.1 for gain in gained)
    for model in made:
        for name, tensor in model.network.state_dict().items():
            same = torch.equal(tensor, before.state_dict()[name])
            if name in ("text_embeddings", "logit_scale", "logit_bias"):
                assert same, name
        assert not torch.equal(model.network.visual.proj, before.visual.proj)


def test_no_defence_that_applies_is_an_error() -> None:
    sample = twin_sample(20, seed=2)
    steps = make_surrogates(
        clip_model(),
        from_arrays(sample.images, sample.labels),
        config=SurrogateConfig(defenses=(FstConfig(tuning=TUNING),)),
        generator=torch.Generator().manual_seed(0),
    )
    with pytest.raises(ModelError, match="no surrogate can be made: left out FST"):
        finish(steps)


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_a_stand_in_is_a_fresh_image_tower_against_the_same_texts(tower: str) -> None:
    teacher, sample = clip_model(tower), twin_sample(20, seed=2)
    steps = make_stand_ins(
        teacher,
        from_arrays(sample.images, sample.labels),
        count=1,
        config=StandInConfig(n_images=40, batch_size=20, learning_rate=0.01),
        generator=torch.Generator().manual_seed(0),
    )
    (made,) = finish(steps)
    for name, tensor in made.network.state_dict().items():
        same = torch.equal(tensor, teacher.network.state_dict()[name])
        assert same == (not name.startswith("visual.")), name
    assert made.classifier(sample.images).shape == (20, 4)


def test_what_is_pruned_in_a_clip_runs_as_a_layer() -> None:
    vit, rn = clip_model("vit").network, clip_model("rn").network
    assert last_feature_layer(vit) is vit.visual.transformer.resblocks[1].mlp.c_proj
    assert last_feature_layer(rn) is rn.visual.layer4[0].downsample[1]
    # An attention module without an MLP after it: its projection is never called.
    plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    assert last_feature_layer(plain) is plain[0]
