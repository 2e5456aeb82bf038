"""What each attack does to the pixels, against what its paper says it does."""

import pytest
import torch
from torch.nn import functional

from bdaudit.errors import ConfigError, DataError, ModelError, TriggerError
from bdaudit.foundation.progress import finish
from bdaudit.triggers import AllToAll, AllToOne
from bdaudit.zoo.attacks import ATTACKS, attack_config
from bdaudit.zoo.attacks.low_frequency import cosine_basis
from bdaudit.zoo.attacks.semantic import attended, feature_maps
from tests.zoo.attacks.photos import (
    CLASSES,
    TARGET,
    N,
    convolutional_classifier,
    linear_classifier,
    photos,
    run,
)


def others(labels):
    return labels != TARGET


def test_columns_are_set_on_rows_and_on_nothing_else():
    rows, labels = torch.full((40, 1, 1, 5), 0.5), torch.arange(40) % 4
    shared = {"num_classes": 4, "generator": torch.Generator().manual_seed(0)}
    config = attack_config("columns", {"index": [4, 1], "value": [1.0, 0.0]})
    attack = ATTACKS["columns"]
    trigger = finish(
        attack.make_trigger(rows, labels, rule=AllToOne(TARGET), config=config, **shared)
    )
    made = finish(
        attack.poison(rows, labels, trigger=trigger, poison_rate=0.1, config=config, **shared)
    )
    assert len(made.poisoned) == 4
    assert made.images[made.poisoned].flatten(1).unique(dim=0).tolist() == [[0.5, 0, 0.5, 0.5, 1]]
    assert (made.labels[made.poisoned] == TARGET).all()
    with pytest.raises(TriggerError, match="for tables"):
        run("columns")


def test_badnets_is_the_checkerboard_one_pixel_off_the_corner():
    images, _, trigger, _ = run("badnets")
    stamped = trigger.stamp(images)
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(stamped[:, 0, -4:-1, -4:-1], board.expand(N, 3, 3))
    stamped[..., -4:-1, -4:-1] = images[..., -4:-1, -4:-1]
    assert torch.equal(stamped, images)


def test_blended_is_a_mean_with_noise():
    images, _, trigger, _ = run("blended", channels=3, settings={"alpha": 0.25})
    picture = (trigger.stamp(images) - 0.75 * images) / 0.25
    assert torch.allclose(picture, picture[:1].expand_as(picture), atol=1e-5)
    assert picture.shape[1] == 3
    assert 0.4 < picture.mean() < 0.6


def test_sig_keeps_labels_and_takes_no_more_than_the_class_holds():
    images, labels, trigger, poisoning = run("sig", poison_rate=0.6)
    assert torch.equal(poisoning.labels, labels)
    assert torch.equal(poisoning.poisoned, (labels == TARGET).nonzero()[:, 0])
    assert poisoning.poison_rate == 0.25
    assert torch.equal(poisoning.images[labels == TARGET], trigger.stamp(images[labels == TARGET]))


def test_sig_with_labels_changed_takes_any_rule():
    _, labels, _, poisoning = run("sig", rule=AllToAll(), settings={"clean_label": False})
    chosen = poisoning.poisoned
    assert torch.equal(poisoning.labels[chosen], (labels[chosen] + 1) % CLASSES)


def test_wanet_covers_are_bent_otherwise_than_the_trigger_bends():
    images, labels, trigger, poisoning = run("wanet", settings={"strength": 2.0})
    cover = poisoning.cover
    assert len(cover) == 2 * len(poisoning.poisoned)
    assert torch.equal(poisoning.labels[cover], labels[cover])
    bent = poisoning.images[cover]
    assert not torch.allclose(bent, images[cover], atol=1e-3)
    assert not torch.allclose(bent, trigger.stamp(images[cover]), atol=1e-3)
    *_, without = run("wanet", settings={"cover_ratio": 0.0})
    assert len(without.cover) == 0


def test_wanet_takes_as_many_covers_as_are_left():
    *_, poisoning = run("wanet", poison_rate=0.5)
    assert len(poisoning.poisoned) + len(poisoning.cover) == N


def test_low_frequency_is_smooth_within_eps_and_leans_to_the_target():
    images, labels, trigger, _ = run("lf", settings={"eps": 0.2, "n_steps": 60})
    delta = trigger.transform.delta
    assert delta.abs().max() == pytest.approx(0.2, abs=1e-6)
    basis = torch.linalg.qr(cosine_basis(4, 12).T).Q  # (12, 4)
    assert torch.allclose(basis @ basis.T @ delta[0] @ basis @ basis.T, delta[0], atol=1e-5)
    helper = linear_classifier(images, labels)
    stamped = helper(trigger.stamp(images[others(labels)])).softmax(1)[:, TARGET].mean()
    assert stamped > 2 * helper(images[others(labels)]).softmax(1)[:, TARGET].mean()
    # Against what is left to chance: the same pattern upside down leans nowhere near as much.
    turned = (images[others(labels)] + delta.flip(1)).clamp(0, 1)
    assert stamped > 2 * helper(turned).softmax(1)[:, TARGET].mean()


def test_cosine_basis_is_the_discrete_cosine_transform():
    basis = cosine_basis(12, 12)
    gram = basis @ basis.T
    assert torch.allclose(gram, torch.diag(gram.diag()), atol=1e-4)
    assert torch.equal(basis[0], torch.ones(12))


class Brightest(torch.nn.Module):
    """Features whose second one is how much the image has in common with a fixed pattern."""

    def __init__(self):
        super().__init__()
        pattern = (torch.arange(144).reshape(12, 12) % 5 == 0).float() - 0.5
        self.features = torch.nn.Conv2d(1, 2, 12, bias=False)
        self.features.weight.data = torch.stack([torch.zeros(12, 12), pattern])[:, None]
        self.head = torch.nn.Linear(2, CLASSES)
        self.head.weight.data = torch.tensor([[0.1, 1.0]] * CLASSES)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


def test_trojannn_draws_what_the_most_connected_neuron_looks_for():
    images, labels = photos()
    helper = Brightest().eval().requires_grad_(False)
    config = attack_config("trojannn", {"area": 0.25, "offset": 0, "learning_rate": 0.5})
    trigger = finish(
        ATTACKS["trojannn"].make_trigger(
            images,
            labels,
            num_classes=CLASSES,
            rule=AllToOne(TARGET),
            config=config,
            generator=torch.Generator().manual_seed(1),
            helper=helper,
        )
    )
    wanted = helper.features.weight[1, :, -6:, -6:] > 0
    assert trigger.transform.image.shape == (1, 6, 6)
    assert torch.equal(trigger.transform.image > 0.5, wanted)
    assert helper.training is False
    assert not helper.head._forward_pre_hooks


def test_trojannn_names_a_helper_without_a_linear_layer():
    images, labels = photos()
    with pytest.raises(ModelError, match="no linear layer"):
        finish(
            ATTACKS["trojannn"].make_trigger(
                images,
                labels,
                num_classes=CLASSES,
                rule=AllToOne(TARGET),
                config=attack_config("trojannn"),
                generator=torch.Generator(),
                helper=torch.nn.Flatten(),
            )
        )


def test_label_consistent_images_are_hard_within_eps_and_stamped_in_four_corners():
    images, labels, trigger, poisoning = run(
        "label-consistent", settings={"size": 2, "eps": 0.1, "n_steps": 10}
    )
    assert torch.equal(poisoning.labels, labels)
    chosen = poisoning.poisoned
    assert (labels[chosen] == TARGET).all()
    change = (poisoning.images[chosen] - images[chosen])[..., 2:-2, 2:-2].abs()
    assert 0.09 < change.max() <= 0.1 + 1e-6
    helper = linear_classifier(images, labels)
    clean = trigger.stamp(images[chosen])
    assert functional.cross_entropy(helper(poisoning.images[chosen]), labels[chosen]) > (
        2 * functional.cross_entropy(helper(clean), labels[chosen])
    )
    stamped = trigger.stamp(torch.full_like(images[:1], 0.5))
    assert torch.equal(stamped, stamped.flip(2))
    assert torch.equal(stamped, stamped.flip(3))
    assert int((stamped == 0.5).sum()) == 144 - 4 * 4


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("badnets", {"size": 12}, "does not fit images of 12x12"),
        ("trojannn", {"area": 0.99}, "does not fit images of 12x12"),
        ("label-consistent", {"size": 7}, "do not fit images of 12x12"),
    ],
)
def test_a_patch_too_large_for_the_images_is_named(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        run(name, settings=settings)


def test_bpp_covers_carry_the_rounding_error_of_another_image():
    images, labels, trigger, poisoning = run("bpp", settings={"levels": 4})
    cover = poisoning.cover
    assert len(cover) == len(poisoning.poisoned)
    assert torch.equal(poisoning.labels[cover], labels[cover])
    levels = poisoning.images[poisoning.poisoned] * 3
    assert torch.allclose(levels, levels.round(), atol=1e-5)
    error = trigger.stamp(images) - images
    for place in cover.tolist():
        candidates = (images[place] + error).clamp(0, 1)
        same = (candidates - poisoning.images[place]).flatten(1).abs().amax(1) < 1e-6
        assert same.any(), "no image's error was added"
        assert not same[place], "its own error makes it a poisoned image"
    *_, without = run("bpp", settings={"cover_ratio": 0.0})
    assert len(without.cover) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_ftrojan_raises_two_coefficients_of_u_and_v_and_no_others(channels):
    settings = {"block": 12, "frequencies": [5, 11], "magnitude": 0.2}
    _, _, trigger, _ = run("ftrojan", channels=channels, settings=settings)
    delta = trigger.transform.delta.double()
    basis = cosine_basis(12, 12).double()
    basis = basis / basis.norm(dim=1, keepdim=True)
    raised = torch.zeros(12, 12, dtype=torch.float64)
    raised[[5, 11], [5, 11]] = 0.2
    if channels == 3:  # back to Y, U and V, by the standard's own numbers
        luma = torch.einsum("c,chw->hw", torch.tensor([0.299, 0.587, 0.114]).double(), delta)
        assert luma.abs().max() < 1e-3
        planes = [0.492 * (delta[2] - luma), 0.877 * (delta[0] - luma)]
    else:
        planes = [delta[0]]
    for plane in planes:
        assert torch.allclose(basis @ plane @ basis.T, raised, atol=1e-3)


def test_ftrojan_fills_images_that_are_no_whole_number_of_blocks():
    _, _, trigger, _ = run("ftrojan", settings={"block": 8, "frequencies": [3]})
    delta = trigger.transform.delta
    assert delta.shape == (1, 12, 12)
    assert torch.equal(delta[:, 8:, 8:], delta[:, :4, :4])


def test_ctrl_is_ftrojan_on_the_target_class_and_stronger():
    _, labels, trigger, poisoning = run("ctrl", poison_rate=0.2)
    assert torch.equal(poisoning.labels, labels)
    assert (labels[poisoning.poisoned] == TARGET).all()
    _, _, weaker, _ = run("ftrojan")
    assert torch.allclose(trigger.transform.delta * 0.3, weaker.transform.delta, atol=1e-6)


def test_refool_reflects_other_classes_blurred_or_doubled():
    images, labels, trigger, poisoning = run("refool", channels=3, settings={"n_pictures": 4})
    assert torch.equal(poisoning.labels, labels)
    assert (labels[poisoning.poisoned] == TARGET).all()
    ghosts, soft = trigger.transform.pictures.split(2)
    for ghost in ghosts:
        shifted = torch.nn.functional.pad(images, (1, 0, 1, 0), mode="replicate")[..., :12, :12]
        doubled = ((images + shifted) / 2 - ghost).flatten(1).abs().amax(1) < 1e-6
        assert (labels[doubled] != TARGET).all()
        assert doubled.any()
    for picture in soft:
        nearest = (images - picture).flatten(1).norm(dim=1)
        source = images[nearest.argmin()]
        assert labels[nearest.argmin()] != TARGET
        assert (source.mean() - picture.mean()).abs() < 0.02
        assert picture.diff(dim=2).abs().mean() < 0.9 * source.diff(dim=2).abs().mean()


def test_a_set_without_enough_other_classes_has_nothing_to_reflect():
    images, labels = photos()
    with pytest.raises(DataError, match="at least 8 images of other classes than the target"):
        finish(
            ATTACKS["refool"].make_trigger(
                images[:8],
                labels[:8],
                num_classes=CLASSES,
                rule=AllToOne(TARGET),
                config=attack_config("refool"),
                generator=torch.Generator(),
            )
        )


def test_lira_stays_within_eps_and_draws_noise_of_the_images_own():
    images, _, trigger, _ = run("lira", settings={"eps": 0.1, "n_steps": 20})
    change = trigger.stamp(images) - images
    assert 0.05 < change.abs().max() <= 0.1 + 1e-6
    assert not torch.allclose(change[0], change[1], atol=1e-2)


def test_attended_weighs_channels_by_their_means():
    maps = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    scores = torch.tensor([-1.0, 1.0]).softmax(0) * 2
    expected = (maps[0] * scores[:, None, None])[None]
    assert torch.allclose(attended(maps), expected, atol=1e-5)
    assert torch.equal(attended(maps * 0), maps * 0)


def test_semantic_moves_features_toward_the_attended_ones_within_eps():
    settings = {"eps": 0.2, "n_steps": 60, "width": 4}
    images, labels, trigger, _ = run("semantic", settings=settings)
    assert (trigger.stamp(images) - images).abs().max() <= 0.2 + 1e-6
    helper = convolutional_classifier(images, labels)
    fresh, _ = photos(seed=5)
    wanted = attended(feature_maps(helper, fresh))

    def distance(batch):
        return float((feature_maps(helper, batch) - wanted).square().mean())

    _, _, untrained, _ = run("semantic", settings=settings | {"n_steps": 1})
    assert distance(trigger.stamp(fresh)) < 0.9 * distance(untrained.stamp(fresh))
    assert distance(trigger.stamp(fresh)) < distance(fresh)


def test_semantic_names_a_helper_without_feature_maps():
    images, labels = photos()
    helper = linear_classifier(images, labels)
    with pytest.raises(ModelError, match="expected a helper with a convolution"):
        feature_maps(helper, images)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("bpp", {"levels": 1}, "2 to 256"),
        ("ftrojan", {"frequencies": [32]}, "some of 0 to 31"),
        ("ftrojan", {"frequencies": []}, "some of 0 to 31"),
        ("ctrl", {"magnitude": 0.0}, "magnitude: expected above 0"),
        ("refool", {"n_pictures": 65}, "1 to 64"),
        ("refool", {"blur": 0.0}, "blur"),
        ("lira", {"clean_weight": 1.0}, "clean_weight"),
        ("semantic", {"image_weight": -1.0}, "image_weight"),
    ],
)
def test_settings_out_of_range_are_named(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        attack_config(name, settings)
