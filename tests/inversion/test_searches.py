"""The searches and the race, on nets whose answers are known before they start."""

from __future__ import annotations

import pytest
import torch

from bdaudit.errors import ConfigError, DataError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.inversion import (
    FeatureDecouplingConfig,
    InversionConfig,
    Inverted,
    Method,
    NeuralCleanseConfig,
    NeuronNoiseConfig,
    UniversalConfig,
    invert_with,
    make_arms,
)
from bdaudit.inversion.arms import draw_batches
from bdaudit.inversion.features import FeatureMap, find_last_map, fit_map_mask
from bdaudit.inversion.neuron_noise import shake
from bdaudit.triggers import AllToAll, AllToOne, ClassMap, Patch, TargetRule, Warp
from tests.inversion.nets import (
    LinearNet,
    MappedNet,
    MovedNet,
    another_innocent,
    faint_twin,
    linear_sample,
)
from tests.twins import NUM_CLASSES, original_twin, twin_sample

RULES: list[TargetRule | None] = [*(AllToOne(k) for k in range(NUM_CLASSES)), None]


def search(method: Method, net: torch.nn.Module, *, seed: int = 0) -> Inverted:
    sample = twin_sample(120, seed=1)
    arms, _ = make_arms(RULES, sample.labels, NUM_CLASSES)
    return finish(
        invert_with(
            method,
            [net, another_innocent(1), another_innocent(2)],
            sample.images,
            sample.labels,
            arms,
            config=InversionConfig(),
            wanted=range(len(arms)),
            n_tests=len(arms),
            seed=seed,
            batch_size=256,
        )
    )


def test_neural_cleanse_finds_the_one_pixel_that_matters() -> None:
    found = search("neural-cleanse", original_twin())
    assert found.recovered[0].arm == 0
    patch = found.recovered[0].transform
    assert isinstance(patch, Patch)
    assert patch.mask is not None
    assert patch.mask.flatten().argmax() == 63  # the trigger pixel, bottom right
    assert patch.mask.sum() < 1.5
    assert found.anomalies.p_values is not None
    assert found.anomalies.p_values[0] < 0.001 < min(found.anomalies.p_values[1:])


@pytest.mark.parametrize("classes", [(1, 2, 3, 0), (2, 3, 1, 0)])
def test_a_trigger_that_moves_every_class_elsewhere_is_found_with_its_map(
    classes: tuple[int, ...],
) -> None:
    found = search("neural-cleanse", MappedNet(classes))
    best = found.recovered[0]
    assert RULES[best.arm] is None
    assert best.rule == (AllToAll() if classes == (1, 2, 3, 0) else ClassMap(classes))
    assert best.size < 1.5
    assert found.anomalies.p_values is not None
    assert found.anomalies.p_values[best.arm] < 0.001


def test_the_smallest_universal_perturbation_finds_a_faint_trigger() -> None:
    found = search("universal", faint_twin())
    assert found.recovered[0].arm == 0
    assert found.anomalies.p_values is not None
    assert found.anomalies.p_values[0] < 0.05
    # Above the faint trigger's threshold of .05 less the darkest pixels, and not far above.
    assert 0.04 < found.recovered[0].size < 0.07


def test_the_universal_search_does_not_see_a_trigger_beyond_its_radii() -> None:
    """The original twin wants .5 of one pixel: only a mask finds that."""
    found = search("universal", original_twin())
    assert found.anomalies.p_values is not None
    assert min(found.anomalies.p_values) == 1.0


@pytest.mark.parametrize("method", ["universal", "neural-cleanse"])
def test_an_innocent_model_has_no_unusual_class(method: Method) -> None:
    found = search(method, another_innocent(7))
    assert found.anomalies.p_values is not None
    assert min(found.anomalies.p_values) > 0.1


def test_the_same_seed_gives_the_same_trigger() -> None:
    one, two = (search("universal", faint_twin()).recovered[0].transform for _ in range(2))
    assert torch.equal(one.tensors()["delta"], two.tensors()["delta"])


def test_arms_do_not_see_one_another() -> None:
    """A class raced alone comes as far as beside the others: its draws apart, it is independent."""
    sample = twin_sample(120, seed=1)
    (alone,), _ = make_arms([AllToOne(0)], sample.labels, NUM_CLASSES)
    found = finish(
        invert_with(
            "neural-cleanse",
            [original_twin(), another_innocent(1), another_innocent(2)],
            sample.images,
            sample.labels,
            [alone],
            config=InversionConfig(),
            wanted=[0],
            n_tests=1,
            seed=0,
            batch_size=16,
        )
    )
    together = search("neural-cleanse", original_twin())
    assert found.race.sizes[:, 0] == pytest.approx(together.race.sizes[:, 0], abs=0.3)


def test_two_hundred_classes_cost_a_small_part_of_as_many_runs() -> None:
    """The race drops the hopeless and keeps the planted one, by either method."""
    original = LinearNet(200, seed=0, weak=123)
    innocents = [LinearNet(200, seed=1), LinearNet(200, seed=2)]
    images, labels = linear_sample(original, 40)
    arms, _ = make_arms([AllToOne(k) for k in range(200)], labels, 200)
    config = InversionConfig(
        universal=UniversalConfig(n_images=8, n_scored=16),
        neural_cleanse=NeuralCleanseConfig(n_images=8, n_steps=10),
    )
    for method in config.methods:
        found = finish(
            invert_with(
                method,
                [original, *innocents],
                images,
                labels,
                arms,
                config=config,
                wanted=range(200),
                n_tests=400,
                seed=0,
                batch_size=4096,
            )
        )
        assert config.min_arms <= len(found.race.finished) <= 26
        assert found.recovered[0].arm == 123
        assert found.differentiated < 0.6 * found.naive


def test_a_target_without_images_of_other_classes_is_left_out_and_named() -> None:
    labels = torch.tensor([0] * 30 + [1] * 4)
    arms, skipped = make_arms([AllToOne(0), AllToOne(1), AllToOne(2)], labels, 3)
    assert [arm.rule for arm in arms] == [AllToOne(1), AllToOne(2)]
    assert skipped == ("class 0 (4 images of other classes)",)
    with pytest.raises(DataError, match="expected 10 or more"):
        make_arms([AllToOne(0)], labels, 3)


def test_batches_go_through_an_arms_own_images_before_any_comes_twice() -> None:
    labels = torch.arange(40) % 4
    arms, _ = make_arms([AllToOne(0), AllToAll()], labels, 4)
    batches = draw_batches(arms, 10, 3, torch.Generator().manual_seed(0))
    seen = torch.cat([indices[0] for indices, _ in batches])
    assert sorted(seen.tolist()) == sorted(arms[0].indices.tolist())
    for indices, targets in batches:
        assert (targets[0] == 0).all()
        assert torch.equal(targets[1], (labels[indices[1]] + 1) % 4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: InversionConfig(methods=()),
        lambda: InversionConfig(methods=("spells",)),  # type: ignore[arg-type]
        lambda: InversionConfig(methods=("universal", "universal")),
        lambda: InversionConfig(found_p=0.2),
        lambda: InversionConfig(min_asr=0.0),
        lambda: InversionConfig(n_candidates=0),
        lambda: UniversalConfig(ladder=(0.1, 0.05)),
        lambda: UniversalConfig(n_steps=0),
        lambda: NeuralCleanseConfig(success=0.0),
        lambda: NeuralCleanseConfig(cost_factor=1.0),
        lambda: NeuralCleanseConfig(n_images=0),
        lambda: NeuronNoiseConfig(n_epochs=0),
        lambda: NeuronNoiseConfig(mask_rate=0.0),
    ],
)
def test_settings_out_of_range_are_refused(build: object) -> None:
    with pytest.raises(ConfigError):
        build()  # type: ignore[operator]


def nominate(method: Method, net: torch.nn.Module, config: InversionConfig) -> Inverted:
    sample = twin_sample(120, seed=1)
    arms, _ = make_arms(RULES[:-1], sample.labels, NUM_CLASSES)
    return finish(
        invert_with(
            method,
            [net, another_innocent(1), another_innocent(2)],
            sample.images,
            sample.labels,
            arms,
            config=config,
            wanted=range(len(arms)),
            n_tests=len(arms),
            seed=0,
            batch_size=256,
        )
    )


def test_feature_decoupling_points_at_the_target_and_gives_no_p_value() -> None:
    config = InversionConfig(feature_decoupling=FeatureDecouplingConfig(eps=0.08))
    found = nominate("feature-decoupling", faint_twin(), config)
    assert found.recovered[0].arm == 0
    assert found.anomalies.gains.argmax() == 0
    assert found.anomalies.p_values is None
    assert "no p-value" in (found.anomalies.reason or "")


def test_neuron_noise_says_what_it_needs() -> None:
    with pytest.raises(ModelError, match="normalisation layers"):
        nominate("neuron-noise", faint_twin(), InversionConfig())


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_neuron_noise_shakes_normalisation_layers_and_leaves_the_model_as_it_was(
    batch_statistics: bool,
) -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, NUM_CLASSES),
    )
    net.eval().requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sample = twin_sample(40, seed=1)
    answers, cost = finish(
        shake(
            net,
            sample.images,
            sample.labels,
            config=NeuronNoiseConfig(
                n_steps=3, n_images=10, n_epochs=2, batch_statistics=batch_statistics
            ),
            generator=torch.Generator().manual_seed(0),
        )
    )
    assert answers.shape == (40,)
    assert cost == 30
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net)
    norm = net[1]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert not norm.training
    assert norm.track_running_stats


def test_batch_statistics_are_those_of_the_images_that_are_asked() -> None:
    """Statistics kept from training that fit no image send all to class 1; the batch's do not."""
    net = torch.nn.Sequential(
        torch.nn.BatchNorm2d(1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2)
    )
    net.eval().requires_grad_(requires_grad=False)
    assert isinstance(net[0], torch.nn.BatchNorm2d)
    assert isinstance(net[3], torch.nn.Linear)
    net[0].running_mean = torch.tensor([9.0])
    net[3].weight.copy_(torch.stack([torch.ones(64), torch.zeros(64)]))
    net[3].bias.copy_(torch.tensor([0.0, 1.0]))
    sample = twin_sample(40, seed=1)
    sent = [
        finish(
            shake(
                net,
                sample.images,
                torch.zeros(40, dtype=torch.long),
                config=NeuronNoiseConfig(eps=1e-3, n_epochs=1, batch_statistics=of_batches),
                generator=torch.Generator().manual_seed(0),
            )
        )[0]
        for of_batches in (False, True)
    ]
    assert (sent[0] == 1).all()
    assert (sent[1] == 0).any()


def test_the_mask_tells_places_of_the_map_apart_that_pooling_would_mix() -> None:
    """The left half says the class, the right half nothing; there is one channel."""
    net = torch.nn.Sequential(
        torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU()),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(1, 2),
    )
    net.eval().requires_grad_(requires_grad=False)
    weights = (1.0, 0.0, 40.0, -40.0, 0.0, 24.0)
    torch.nn.utils.vector_to_parameters(torch.tensor(weights), net.parameters())
    images = torch.zeros(40, 1, 4, 4)
    images[:20, ..., :2] = 1.0
    labels = torch.tensor([0] * 20 + [1] * 20)
    layer = find_last_map(net, images[:2])
    assert layer is net[0]
    with FeatureMap(layer).hooked() as features:
        mask = finish(
            fit_map_mask(
                net,
                features,
                images,
                labels,
                n_epochs=30,
                n_images=40,
                learning_rate=0.05,
                sparsity=0.75,
                generator=torch.Generator().manual_seed(0),
            )
        )
    assert mask.shape == (1, 4, 4)
    assert mask[..., :2].min() > 0.9
    assert mask[..., 2:].max() < 0.1


def test_tokens_are_no_map() -> None:
    patches = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 4, 4), torch.nn.Flatten(2))
    net = torch.nn.Sequential(patches, torch.nn.LayerNorm(4), torch.nn.Flatten())
    assert find_last_map(net, torch.rand(2, 1, 8, 8)) is None


def test_the_smallest_warp_is_found_by_how_far_it_moves_pixels() -> None:
    """A net that takes an image to class 0 when a block is moved to the border."""
    found = search("warp", MovedNet())
    assert found.recovered[0].arm == 0
    warp = found.recovered[0].transform
    assert isinstance(warp, Warp)
    assert found.anomalies.p_values is not None
    assert found.anomalies.p_values[0] == min(found.anomalies.p_values)
