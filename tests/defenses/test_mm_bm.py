"""MM-BM: bounds that clean images do not reach cut a trigger off, and are kept in the file."""

import pytest
import torch
from torch import nn

from bdaudit.defenses.mm_bm import MmBmConfig, bound_activations, layers_to_bound
from bdaudit.errors import ConfigError, DataError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.models import OutputClamp, load_model, save_model


def _run(net, images, labels, **settings):
    draw = torch.Generator().manual_seed(0)
    return finish(
        bound_activations(net, images, labels, config=MmBmConfig(**settings), generator=draw)
    )


def _backdoored():
    """Three features for each class by the brighter half; one overrules them by a corner pixel."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    left, right, corner = [0.0, 2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0, 2.0], [20.0, 0, 0, 0, 0]
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([left] * 3 + [right] * 3 + [corner]))
        net[1].bias.zero_()
        net[3].weight.copy_(torch.tensor([[1.0] * 3 + [-1.0] * 4, [-1.0] * 3 + [1.0] * 4]))
        net[3].bias.zero_()
    return net.eval().requires_grad_(False)


def _images(stamped):
    labels = torch.arange(40) % 2
    images = 0.1 * torch.rand((40, 1, 1, 5), generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :, 1:3] += 0.8
    images[labels == 1, :, :, 3:5] += 0.8
    images[:, :, :, 0] = 1.0 if stamped else 0.02
    return images, labels


def test_a_trigger_that_works_by_a_large_activation_is_cut_off():
    net = _backdoored()
    images, labels = _images(stamped=False)
    stamped, _ = _images(stamped=True)
    assert net(images).argmax(1).tolist() == labels.tolist()
    assert net(stamped).argmax(1).tolist() == [1] * 40
    bounded = _run(net, images, labels)
    assert bounded(images).argmax(1).tolist() == labels.tolist()
    assert bounded(stamped).argmax(1).tolist() == labels.tolist()
    assert float(bounded[1].clamp.at_most[6]) < 4.0  # where the trigger puts 20
    for name, value in net.state_dict().items():
        assert torch.equal(bounded.state_dict()[name], value)  # no weight has changed


def test_bounds_fall_no_further_than_clean_images_allow():
    net = _backdoored()
    images, labels = _images(stamped=False)
    for max_acc_loss in (0.0, 0.3):
        bounded = _run(net, images, labels, max_acc_loss=max_acc_loss, norm_weight=50.0)
        right = (bounded(images).argmax(1) == labels).double().mean()
        assert float(right) >= 1 - max_acc_loss


def test_batch_norms_are_bounded_and_the_bounds_survive_the_file(victim, tmp_path):
    few = tuple(part[:40] for part in victim.clean)
    bounded = _run(victim.classifier, *few, start=1.5, n_epochs=3, max_acc_loss=0.9)
    clamps = [part for part in bounded.modules() if isinstance(part, OutputClamp)]
    assert len(clamps) == len(layers_to_bound(victim.classifier)) == 16
    images, _ = victim.test
    stamped = victim.trigger.stamp(images)
    assert not torch.equal(bounded(stamped), victim.classifier(stamped))
    path = tmp_path / "bounded.safetensors"
    save_model(
        path,
        bounded.network,
        arch="bdaudit/preactresnet18_w4",
        num_classes=10,
        image_shape=(1, 8, 8),
        mean=(0.3,),
        std=(0.38,),
    )
    loaded = load_model(path, name="bounded")
    assert torch.equal(loaded.classifier(stamped), bounded(stamped))
    assert any("outputs of 16 layers are bounded from above" in note for note in loaded.notes)


def test_bounding_again_starts_where_the_bounds_are():
    images, labels = _images(stamped=False)
    once = _run(_backdoored(), images, labels)
    twice = _run(once, images, labels, n_epochs=1)
    hooks = [len(part._forward_hooks) for part in twice.modules()]
    assert max(hooks) == 1
    assert bool((twice[1].clamp.at_most <= once[1].clamp.at_most + 0.2).all())


def test_a_start_below_the_activations_or_nothing_right_says_so():
    images, labels = _images(stamped=False)
    with pytest.raises(NumericsError, match="raise start"):
        _run(_backdoored(), images, labels, start=1e-6, n_epochs=1, learning_rate=1e-9)
    with pytest.raises(DataError, match="answers rightly"):
        _run(_backdoored(), images, 1 - labels)


def test_a_network_without_batch_norm_is_bounded_in_its_hidden_layers():
    net = _backdoored()
    assert layers_to_bound(net) == [net[1]]
    normed = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    assert layers_to_bound(normed) == [normed[1]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": 0.0}, "start"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"images_per_class": 0}, "images_per_class"),
        ({"batch_size": 0}, "batch_size"),
        ({"norm_weight": -1.0}, "norm_weight"),
        ({"norm_factor": 0.5}, "norm_factor"),
        ({"max_acc_loss": 1.0}, "max_acc_loss"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        MmBmConfig(**settings)
