"""Embedded perturbations, on nets whose answers are known and on the layers of real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.inversion import (
    EmbeddedConfig,
    InversionConfig,
    NeuralCleanseConfig,
    UniversalConfig,
    make_arms,
)
from bdaudit.inversion.anomaly import Anomalies, score_arms
from bdaudit.inversion.batching import Asker
from bdaudit.inversion.embedded import EmbeddedSearch, find_feature_layer
from bdaudit.inversion.invert import make_search
from bdaudit.models import build_network
from bdaudit.triggers import Additive, AllToOne, Patch, TargetRule
from tests.inversion.nets import TokenNet, another_innocent, faint_twin
from tests.twins import NUM_CLASSES, original_twin, twin_sample

RULES: list[TargetRule | None] = [*(AllToOne(k) for k in range(NUM_CLASSES)), None]
CONFIG = InversionConfig(
    methods=("embedded",),
    n_passes=1,
    embedded=EmbeddedConfig(n_steps=5),
    universal=UniversalConfig(n_images=16, n_scored=32),
    neural_cleanse=NeuralCleanseConfig(n_steps=12),
)


def search_in(net: nn.Module, *, batch_size: int = 256) -> EmbeddedSearch:
    """Take all classes through the race on one net."""
    sample = twin_sample(80, seed=1)
    arms, _ = make_arms(RULES, sample.labels, NUM_CLASSES)
    asker = Asker(net, sample.images, batch_size=batch_size)
    search = make_search("embedded", asker, arms, CONFIG)
    assert isinstance(search, EmbeddedSearch)
    for stage in range(search.n_stages):
        search.advance(stage, range(len(arms)), torch.Generator().manual_seed(stage))
    return search


@cache
def innocent_searches(innocent: Callable[[int], nn.Module]) -> tuple[EmbeddedSearch, ...]:
    return search_in(innocent(1)), search_in(innocent(2))


def raced(
    net: nn.Module, innocent: Callable[[int], nn.Module]
) -> tuple[list[EmbeddedSearch], Anomalies]:
    """Hold a net against two innocent ones."""
    searches = [search_in(net), *innocent_searches(innocent)]
    sizes = torch.stack([search.sizes(search.n_stages - 1) for search in searches])
    return searches, score_arms(sizes, n_tests=len(RULES))


def innocent_tokens(seed: int) -> TokenNet:
    return TokenNet(0.0, seed)


def test_the_target_of_a_faint_trigger_stands_out_and_its_delta_is_found() -> None:
    searches, scored = raced(faint_twin(), another_innocent)
    gains = scored.gains.tolist()
    assert gains[0] > 0.3 > max(gains[1:])
    found = finish(searches[0].recover(0, searches[1:], n_passes=1, seed=0))
    assert isinstance(found.transform, Additive)
    assert found.transform.delta[0, 7, 7] > 0.02  # the trigger pixel
    assert found.unit == "L-inf radius"
    assert found.own is not None
    assert len(found.own) == 2


def test_the_target_stands_out_in_a_network_of_tokens() -> None:
    _, scored = raced(TokenNet(1000.0, 0), innocent_tokens)
    gains = scored.gains.tolist()
    assert gains[0] > 1.0 > max(gains[1:])


def test_a_patch_is_inverted_as_a_mask() -> None:
    """One pixel by half its range: no small delta of all pixels reaches that."""
    sample = twin_sample(80, seed=1)
    arms, _ = make_arms(RULES, sample.labels, NUM_CLASSES)
    searches = [
        make_search("embedded", Asker(net, sample.images, batch_size=256), arms, CONFIG)
        for net in (original_twin(), another_innocent(1))
    ]
    found = finish(searches[0].recover(0, searches[1:], n_passes=1, seed=0))  # type: ignore[arg-type]
    assert isinstance(found.transform, Patch)
    assert found.unit == "pixels"
    assert found.size < 2


@pytest.mark.parametrize(
    ("net", "innocent"),
    [(another_innocent(7), another_innocent), (TokenNet(0.0, 7), innocent_tokens)],
    ids=["convolutions", "tokens"],
)
def test_an_innocent_model_has_no_unusual_class(
    net: nn.Module, innocent: Callable[[int], nn.Module]
) -> None:
    _, scored = raced(net, innocent)
    assert scored.p_values is not None
    assert min(scored.p_values) > 0.1


def test_a_small_batch_changes_nothing_and_the_model_is_left_as_it_was() -> None:
    net = faint_twin()
    parts, together = search_in(net, batch_size=30), search_in(net)
    assert parts.sizes(4) == pytest.approx(together.sizes(4), abs=0.05)
    assert not any(module._forward_hooks for module in net.modules())
    assert parts.asker.differentiated == 2 * len(RULES) * 20 * 25


@pytest.mark.parametrize(
    ("arch", "layer"),
    [("bdaudit/preactresnet18_w8", "layer4.1"), ("bdaudit/vit_p4_w16", "blocks.4")],
)
def test_the_last_map_and_the_last_tokens_but_one_are_perturbed(arch: str, layer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    net = build_network(arch, num_classes=3, in_channels=1, generator=generator).eval()
    images = torch.rand(2, 1, 32, 32, generator=generator)
    found = find_feature_layer(net, images, None)
    assert [label for label, module in net.named_modules() if module is found] == [layer]
    assert find_feature_layer(net, images, layer) is found


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    images = twin_sample(2, seed=1).images
    with pytest.raises(ModelError, match=r"'layer9' .* got none; there are conv1, .*layer1"):
        find_feature_layer(faint_twin(), images, "layer9")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
    with pytest.raises(ModelError, match="feature maps or tokens, got none"):
        find_feature_layer(flat, images, None)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EmbeddedConfig(n_images=0),
        lambda: EmbeddedConfig(n_steps=0),
        lambda: EmbeddedConfig(pixel_rate=0.0),
        lambda: EmbeddedConfig(consensus_weight=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()
