"""Each defence does what it claims on a small real task, and nothing to its inputs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from bdaudit.defenses import (
    BanConfig,
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    NcUnlearnConfig,
    SauConfig,
    TsbdConfig,
    TuningConfig,
    ban_finetune,
    feature_shift_tune,
    fine_prune,
    finetune,
    ft_sam,
    nc_unlearn,
    shared_adversarial_unlearn,
    tsbd,
)
from bdaudit.defenses.fine_pruning import mean_activation
from bdaudit.defenses.ft_sam import at_worst_neighbour
from bdaudit.defenses.layers import classifier_head, last_feature_layer
from bdaudit.defenses.tuning import statistics_held, trainable_copy
from bdaudit.errors import ConfigError, DataError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.inversion import NeuralCleanseConfig
from bdaudit.models import build_network
from bdaudit.scoring import predict
from tests.defenses.pictures import pictures, small_net

TUNING = TuningConfig(learning_rate=0.05, n_epochs=4, batch_size=30)
DEFENSES = {
    "finetune": (finetune, FinetuneConfig(tuning=TUNING)),
    "ft_sam": (ft_sam, FtSamConfig(tuning=TUNING)),
    "fine_prune": (fine_prune, FinePruningConfig(tuning=TUNING)),
    # A fresh head takes longer to learn.
    "fst": (feature_shift_tune, FstConfig(tuning=replace(TUNING, n_epochs=15))),
    # A mask of fewer steps still covers whole pictures, and stamping those unlearns the task.
    "nc-unlearn": (
        nc_unlearn,
        NcUnlearnConfig(
            search=NeuralCleanseConfig(n_stages=2, n_steps=30), n_full_steps=30, tuning=TUNING
        ),
    ),
    "sau": (shared_adversarial_unlearn, SauConfig(eps=0.1, step_size=0.1, tuning=TUNING)),
    "tsbd": (tsbd, TsbdConfig(max_unlearning_epochs=3, tuning=TUNING)),
    "ban": (ban_finetune, BanConfig(tuning=TUNING)),
}
every_defense = pytest.mark.parametrize("name", DEFENSES)


@pytest.fixture(scope="module")
def net():
    return small_net()


def _defend(name, net, *, seed=0, config=None, images=None):
    run, default = DEFENSES[name]
    pixels, labels = pictures(90, seed=2) if images is None else images
    generator = torch.Generator().manual_seed(seed)
    return finish(run(net, pixels, labels, config=config or default, generator=generator))


def _accuracy(net, seed=3):
    images, labels = pictures(300, seed)
    return float((predict(net, images, batch_size=100) == labels).float().mean())


def _tensors(net):
    return [tensor.clone() for tensor in net.state_dict().values()]


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_defense
def test_task_is_kept_and_weights_change(net, name):
    defended = _defend(name, net)
    assert _accuracy(net) > 0.95  # else the next line says little
    assert _accuracy(defended) > 0.9
    for before, after in zip(net.parameters(), defended.parameters(), strict=True):
        assert not torch.equal(before, after)


@every_defense
def test_inputs_are_left_as_they_were(net, name):
    before, images = _tensors(net), pictures(60, seed=4)
    copies = [tensor.clone() for tensor in images]
    _defend(name, net, images=images)
    assert _same(before, _tensors(net))
    assert _same(copies, images)
    assert not net.training
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


@every_defense
def test_result_is_a_frozen_classifier_without_hooks(net, name):
    defended = _defend(name, net)
    assert not any(part.training for part in defended.modules())
    assert not any(p.requires_grad or p.grad is not None for p in defended.parameters())
    assert not any(part._forward_hooks for part in defended.modules())
    assert not any(p._backward_hooks for p in defended.parameters())


@every_defense
def test_same_seed_same_model_and_another_seed_another(net, name):
    torch.manual_seed(1)
    first = _tensors(_defend(name, net))
    torch.manual_seed(2)
    assert _same(first, _tensors(_defend(name, net)))
    assert not _same(first, _tensors(_defend(name, net, seed=1)))


def test_dropout_is_seeded_and_the_global_generator_left_alone(net):
    net = nn.Sequential(nn.Dropout(0.2), copy.deepcopy(net)).eval()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = _tensors(_defend("finetune", net))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(8)
    assert _same(first, _tensors(_defend("finetune", net)))


def test_one_step_is_plain_gradient_descent(net):
    images, labels = pictures(12, seed=5)
    tuning = TuningConfig(
        learning_rate=0.1,
        n_epochs=1,
        batch_size=12,
        momentum=0.0,
        weight_decay=0.0,
        warm_up=0.0,
        max_shift=0.0,
        flip=False,
    )
    tuned = _defend("finetune", net, config=FinetuneConfig(tuning=tuning), images=(images, labels))
    expected = trainable_copy(net).train()
    functional.cross_entropy(expected(images), labels).backward()
    for before, after in zip(expected.parameters(), tuned.parameters(), strict=True):
        assert torch.allclose(before - 0.1 * before.grad, after, atol=1e-6)


def test_learning_rate_rises_to_its_peak_and_falls():
    config = TuningConfig(learning_rate=0.1, warm_up=0.25)
    rates = [config.rate_at(step / 100) for step in range(100)]
    assert max(rates) == rates[25] == pytest.approx(0.1)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[12] == pytest.approx(0.048)
    assert min(rates) == pytest.approx(0.002)


def test_training_on_cached_casts_is_refused_and_without_the_cache_it_works(net):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="cache_enabled"):
        _defend("finetune", net)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for name in DEFENSES:
            defended = _defend(name, net)
            assert all(value.dtype == torch.float32 for value in defended.parameters())
            assert _accuracy(defended) > 0.9


# ---- FT-SAM --------------------------------------------------------------------------------------


def test_sam_without_radius_is_fine_tuning(net):
    plain = _defend("finetune", net)
    sam = _defend("ft_sam", net, config=FtSamConfig(rho=0.0, tuning=TUNING))
    for a, b in zip(plain.state_dict().values(), sam.state_dict().values(), strict=True):
        # The counter of batches goes up in both passes; nothing reads it.
        if a.is_floating_point():
            assert torch.allclose(a, b, atol=1e-6)


def test_worst_neighbour_raises_the_loss_more_than_a_random_one_and_is_left_again(net):
    model = trainable_copy(net)
    images, labels = pictures(90, seed=6)
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with at_worst_neighbour(model, 0.5), torch.no_grad():
        there = functional.cross_entropy(model(images), labels)
        moves = [p - b for p, b in zip(model.parameters(), before, strict=True)]
    # In weights measured in units of their own size the move has length rho.
    relative = torch.cat(
        [(m / b.abs().clamp_min(1e-12)).flatten() for m, b in zip(moves, before, strict=True)]
    )
    assert float(relative[relative.isfinite()].norm()) == pytest.approx(0.5, rel=1e-3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            noise = torch.randn(value.shape, generator=draw)
            parameter.add_(0.5 * noise * value.abs() / relative.numel() ** 0.5)
        at_random = functional.cross_entropy(model(images), labels)
    assert there > loss
    assert there > at_random


def test_worst_neighbour_is_left_exactly(net):
    model = trainable_copy(net)
    images, labels = pictures(30, seed=6)
    functional.cross_entropy(model(images), labels).backward()
    before = _tensors(model)
    with at_worst_neighbour(model, 0.5):
        assert not _same(before, _tensors(model))
    assert _same(before, _tensors(model))


def test_statistics_are_held(net):
    model = trainable_copy(net).train()
    before = model[1].running_mean.clone()
    with statistics_held(model):
        model(torch.rand(8, 1, 8, 8))
    assert torch.equal(before, model[1].running_mean)
    assert model[1].momentum == 0.1
    model(torch.rand(8, 1, 8, 8))
    assert not torch.equal(before, model[1].running_mean)


# ---- fine-pruning --------------------------------------------------------------------------------


def test_pruned_channels_are_the_least_active_and_stay_zero(net):
    images, _ = pictures(90, seed=2)
    # Activations another way: the front of the network alone, plain loops.
    hidden = net[:4](images).clamp_min(0.0)
    expected = torch.tensor([float(hidden[:, channel].mean()) for channel in range(20)])
    assert torch.allclose(mean_activation(net, net[3], images).float(), expected, rtol=1e-4)
    config = FinePruningConfig(max_acc_loss=0.3, tuning=TUNING)
    defended = _defend("fine_prune", net, config=config)
    zero = (defended[3].weight == 0).flatten(1).all(1) & (defended[3].bias == 0)
    n_pruned = int(zero.sum())
    assert 0 < n_pruned < 20
    assert set(zero.nonzero()[:, 0].tolist()) == set(expected.argsort()[:n_pruned].tolist())


def test_pruning_stops_at_the_allowed_loss(net):
    def n_pruned(max_acc_loss):
        config = FinePruningConfig(max_acc_loss=max_acc_loss, tuning=TUNING)
        defended = _defend("fine_prune", net, config=config)
        return int((defended[3].weight == 0).flatten(1).all(1).sum())

    counts = [n_pruned(loss) for loss in (0.0, 0.1, 0.9)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 19  # one channel is always left


def test_a_transformer_is_pruned_in_its_last_hidden_layer():
    vit = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    assert last_feature_layer(vit) is vit[2]
    assert classifier_head(vit) is vit[3]


def test_what_cannot_be_pruned_or_has_no_head_says_so():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match="two convolutions or two linear layers"):
        _defend("fine_prune", net)
    with pytest.raises(ModelError, match="no linear layer"):
        _defend("fst", nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()))
    no_head = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Unflatten(1, (3, 2, 2)))
    no_head.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    with pytest.raises(ModelError, match="give the 3 logits, got one with 12 outputs"):
        _defend("fst", no_head)


@pytest.mark.parametrize(
    ("arch", "head", "features"),
    [
        ("bdaudit/preactresnet18_w8", "linear", "layer4.1.conv2"),
        ("torchvision/resnet18", "fc", "layer4.1.conv2"),
        ("torchvision/vgg11", "classifier.6", "features.18"),
        ("torchvision/mobilenet_v3_small", "classifier.3", "features.12.0"),
        ("torchvision/vit_b_32", "heads.head", "encoder.layers.encoder_layer_11.mlp.3"),
    ],
)
def test_layers_of_known_architectures(arch, head, features):
    with torch.device("meta"):
        network = build_network(arch, num_classes=10)
    assert network.get_submodule(head) is classifier_head(network)
    assert network.get_submodule(features) is last_feature_layer(network)


# ---- feature-shift tuning ------------------------------------------------------------------------


def test_fst_keeps_the_length_of_the_head_and_turns_it_away(net):
    old = net[8].weight

    def cosine(alpha):
        new = _defend("fst", net, config=FstConfig(alpha=alpha, tuning=TUNING))[8].weight
        assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-4)
        return float((new * old).sum() / (new.norm() * old.norm()))

    assert cosine(1.0) < cosine(0.1) < cosine(0.0)
    tuned = _defend("finetune", net)[8].weight
    assert float((tuned * old).sum() / (tuned.norm() * old.norm())) > 0.5  # fine-tuning stays near


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"momentum": 1.0}, "momentum"),
        ({"max_shift": -0.1}, "max_shift"),
    ],
)
def test_bad_tuning_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        TuningConfig(**settings)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FtSamConfig(rho=-1.0), "rho"),
        (lambda: FstConfig(alpha=float("inf")), "alpha"),
        (lambda: FinePruningConfig(max_acc_loss=1.0), "max_acc_loss"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_images_that_do_not_fit_their_labels_are_refused(net):
    images, labels = pictures(9, seed=0)
    for bad in ((images, labels[:5]), (images[0], labels), (images[:1], labels[:1])):
        with pytest.raises(DataError, match="tuning: expected images"):
            _defend("finetune", net, images=bad)


def test_divergence_is_an_error(net):
    config = FinetuneConfig(tuning=TuningConfig(learning_rate=1e30, n_epochs=3))
    with pytest.raises(NumericsError, match="lower the learning rate"):
        _defend("finetune", net, config=config)
