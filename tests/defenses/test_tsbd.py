"""TSBD: which weights are reset, that unlearning unlearns, and the gradient of its fine-tuning."""

import copy
from statistics import mean

import pytest
import torch
from torch import nn

from bdaudit.defenses import TsbdConfig, TuningConfig, tsbd
from bdaudit.defenses.catalogue import defense_config, flat_settings
from bdaudit.defenses.layers import hidden_layers
from bdaudit.defenses.tsbd import most_changed, moved_up_the_loss, with_weights_reset
from bdaudit.defenses.tuning import backpropagate, trainable_copy
from bdaudit.errors import ConfigError, DataError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.models import build_network
from tests.defenses.digits import TUNING
from tests.defenses.pictures import pictures, small_net

BLOCKS = "encoder.layers.encoder_layer"


def _run(net, sample, config):
    return finish(tsbd(net, *sample, config=config, generator=torch.Generator().manual_seed(0)))


def _reset(net, sample, listener=None, **settings):
    config = TsbdConfig(**settings)
    generator = torch.Generator().manual_seed(0)
    return finish(with_weights_reset(net, *sample, config, generator), listener)


def test_the_backdoor_goes_and_the_task_stays(victim, plain_asrs):
    defended = victim.defend(tsbd, TsbdConfig(tuning=TUNING))
    assert victim.asr(defended) < min(plain_asrs) - 0.25
    assert victim.accuracy(defended) > victim.accuracy(victim.classifier) - 0.1


def test_resetting_hits_the_backdoor_harder_than_resetting_at_random(wide):
    """The premise: the weights that unlearning the task moves most carry the backdoor."""
    reset = _reset(wide.classifier, wide.clean, neuron_share=0.1)
    zeros = [layer.weight == 0 for layer in hidden_layers(reset)]
    at_random = []
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        net = copy.deepcopy(wide.classifier)
        with torch.no_grad():
            for layer, zero in zip(hidden_layers(net), zeros, strict=True):
                # As many weights of as many neurons of the same layer, others in their place.
                rows = torch.randperm(len(zero), generator=draw)
                layer.weight[zero[rows]] = 0.0
        at_random.append(wide.asr(net))
    # 0, and at random .54 to .97.
    assert wide.asr(reset) < 0.1
    assert mean(at_random) > 0.5


def test_weights_that_are_reset_on_numbers_small_enough_to_check():
    changes = [
        torch.tensor([[1.0, 2.0], [9.0, 1.0], [0.0, 0.0]]),  # sums 3, 10, 0
        torch.tensor([[4.0, 5.0, 3.0], [0.5, 0.0, 0.0]]),  # sums 12, .5
    ]
    # Two of five neurons: 10 and 12. Of their five weights the three largest: 9, 5, 4.
    reset = most_changed(changes, TsbdConfig(neuron_share=0.4, weight_share=0.6))
    assert reset[0].tolist() == [[False, False], [True, False], [False, False]]
    assert reset[1].tolist() == [[True, True, False], [False, False, False]]
    everything = most_changed(changes, TsbdConfig(neuron_share=1.0, weight_share=1.0))
    assert all(bool(part.all()) for part in everything)
    least = most_changed(changes, TsbdConfig(neuron_share=0.01, weight_share=0.01))
    assert [int(part.sum()) for part in least] == [0, 1]
    assert bool(least[1][0, 1])  # of the neuron that changed most, the weight that did


def test_as_many_weights_are_reset_as_asked_and_the_rest_is_left():
    net, sample = small_net(), pictures(90, seed=2)
    reset = _reset(net, sample, neuron_share=0.25, weight_share=0.5)
    layers = list(zip(hidden_layers(net), hidden_layers(reset), strict=True))
    zeros = [new.weight == 0 for _, new in layers]
    neurons = sum(int(zero.flatten(1).any(1).sum()) for zero in zeros)
    assert 1 <= neurons <= 7  # a quarter of 28
    for (old, new), zero in zip(layers, zeros, strict=True):
        assert torch.equal(new.weight, old.weight.where(~zero, torch.tensor(0.0)))
    assert torch.equal(net[8].weight, reset[8].weight)


def test_unlearning_stops_when_the_accuracy_is_down_to_chance(victim):
    seen = []
    _reset(
        victim.classifier, victim.clean, lambda event: seen.append(event.done), unlearning_rate=0.05
    )
    assert 2 < len(seen) < 10  # one event an epoch, and one at the end
    assert seen[-1] == TsbdConfig().max_unlearning_epochs


def test_unlearning_stops_where_classes_differ_in_size():
    """A network that answers one class is right about its share, here above one in three."""
    net, (images, labels) = small_net(), pictures(90, seed=2)
    with torch.no_grad():
        net[8].weight.zero_()
        net[8].bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    kept = torch.cat([(labels == 0).nonzero()[:, 0], (labels != 0).nonzero()[:40, 0]])
    seen = []
    _reset(
        net,
        (images[kept], labels[kept]),
        lambda event: seen.append(event.done),
        unlearning_rate=1e-6,
    )
    assert seen == [0, 20]  # one epoch of 20


def test_gradient_is_the_mix_of_two():
    net, (images, labels) = trainable_copy(small_net()), pictures(30, seed=3)
    config = TsbdConfig(radius=0.1, alpha=0.7)

    def gradients_of(model):
        model.zero_grad()
        backpropagate(model, images, labels)
        return [parameter.grad.clone() for parameter in model.parameters()]

    first = gradients_of(net)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), first, strict=True):
            parameter += 0.1 * gradient / gradient.norm()
    second = gradients_of(moved)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    gradients_of(net)
    with moved_up_the_loss(net, config):
        backpropagate(net, images, labels)
    for parameter, a, b, value in zip(net.parameters(), first, second, before, strict=True):
        assert torch.allclose(parameter.grad, 0.3 * a + 0.7 * b, atol=1e-5)
        assert torch.equal(parameter, value)


@pytest.mark.parametrize(
    ("arch", "first", "last", "n"),
    [
        ("bdaudit/preactresnet18_w8", "conv1", "layer4.1.conv2", 17),
        ("torchvision/resnet18", "conv1", "layer4.1.conv2", 17),
        ("torchvision/vgg19_bn", "features.0", "features.49", 16),
        ("torchvision/mobilenet_v3_small", "features.0.0", "features.12.0", 52),
        ("torchvision/vit_b_32", f"{BLOCKS}_0.mlp.0", f"{BLOCKS}_11.mlp.3", 24),
    ],
)
def test_neurons_of_known_architectures(arch, first, last, n):
    with torch.device("meta"):
        network = build_network(arch, num_classes=10)
    layers = hidden_layers(network)
    assert layers[0] is network.get_submodule(first)
    assert layers[-1] is network.get_submodule(last)
    assert len(layers) == n


def test_what_cannot_be_ranked_or_does_not_fit_or_diverges_says_so():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match="two convolutions or two linear layers"):
        _run(net, pictures(9, seed=0), TsbdConfig())
    images, labels = pictures(9, seed=0)
    with pytest.raises(DataError, match="expected images"):
        _run(small_net(), (images, labels[:5]), TsbdConfig())
    with pytest.raises(NumericsError, match="lower unlearning_rate"):
        _run(small_net(), (images, labels), TsbdConfig(unlearning_rate=1e30))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neuron_share": 0.0}, "neuron_share"),
        ({"weight_share": 1.1}, "weight_share"),
        ({"unlearning_rate": 0.0}, "unlearning_rate"),
        ({"max_unlearning_epochs": 0}, "max_unlearning_epochs"),
        ({"radius": -0.1}, "radius"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        TsbdConfig(**settings)


def test_the_schedule_of_the_paper_can_be_set():
    settings = {
        "neuron_share": 0.5,
        "unlearning_rate": 1e-4,
        "unlearning_batch_size": 256,
        "tuning": {
            "schedule": "constant",
            "learning_rate": 0.01,
            "n_epochs": 20,
            "batch_size": 256,
            "weight_decay": 0.0,
        },
    }
    config = defense_config("tsbd", settings)
    assert {config.tuning.rate_at(done) for done in (0.0, 0.3, 0.99)} == {0.01}
    assert defense_config("tsbd", flat_settings(config)) == config
    with pytest.raises(ConfigError, match="schedule"):
        defense_config("tsbd", {"tuning.schedule": "cosine"})
    with pytest.raises(ConfigError, match="schedule: expected one of one-cycle, constant"):
        TuningConfig(schedule="cosine")
    with pytest.raises(ConfigError, match="unlearning_batch_size"):
        TsbdConfig(unlearning_batch_size=1)
