"""What each attack does to the pixels, against what its paper says it does."""

import pytest
import torch
from torch.nn import functional

from bdaudit.errors import ConfigError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.triggers import AllToAll, AllToOne
from bdaudit.zoo.attacks import ATTACKS, attack_config
from bdaudit.zoo.attacks.low_frequency import cosine_basis
from tests.zoo.attacks.photos import CLASSES, TARGET, N, linear_classifier, photos, run


def others(labels):
    return labels != TARGET


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
