"""Fresh weights: nothing is left of what the model learned, or it is refused."""

import copy

import pytest
import torch
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.models import Classifier, build_network, load_model, save_model, wrap_module
from bdaudit.models.fresh import fresh_classifier


def _fresh(model, seed=0):
    return fresh_classifier(model, generator=torch.Generator().manual_seed(seed))


def _wrapped(module, image_shape=(1, 8, 8)):
    return wrap_module(module.eval(), name="defended", image_shape=image_shape)


def _net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def test_a_named_architecture_is_built_anew(tmp_path):
    arch = "bdaudit/preactresnet18_w2"
    path = tmp_path / "model.safetensors"
    network = build_network(
        arch, num_classes=3, in_channels=1, generator=torch.Generator().manual_seed(7)
    )
    save_model(path, network, arch=arch, num_classes=3, image_shape=(1, 8, 8), mean=(0.3,))
    model = load_model(path, name="defended")
    before = copy.deepcopy(model.network.state_dict())
    fresh = _fresh(model, seed=5)
    expected = build_network(
        arch, num_classes=3, in_channels=1, generator=torch.Generator().manual_seed(5)
    )
    assert fresh.training
    assert all(p.requires_grad for p in fresh.parameters())
    assert torch.equal(fresh.mean, model.classifier.mean)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(fresh.network.state_dict()[name], tensor), name
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not model.classifier.training


def test_what_is_named_but_differs_is_drawn_anew_layer_by_layer():
    module = nn.Module.__new__(type("resnet18", (nn.Sequential,), {}))
    nn.Sequential.__init__(module, *_net())
    model = _wrapped(module)
    assert model.arch == "resnet18"
    assert not torch.equal(_fresh(model).network[0].weight, model.network[0].weight)


def test_a_module_in_memory_is_drawn_anew_with_its_running_statistics():
    net = _net().train()
    with torch.no_grad():
        net(torch.rand(16, 1, 8, 8))
        net[1].weight.fill_(3.0)
    model = _wrapped(Classifier(net, mean=(0.2,), std=(0.4,)))
    fresh = _fresh(model)
    assert torch.equal(fresh.mean, torch.full((1, 1, 1, 1), 0.2))
    for position in (0, 4):
        assert not torch.equal(fresh.network[position].weight, net[position].weight)
    assert torch.equal(fresh.network[1].running_mean, torch.zeros(4))
    assert torch.equal(fresh.network[1].weight, torch.ones(4))
    assert int(fresh.network[1].num_batches_tracked) == 0


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    model = _wrapped(_net())
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    one, same, other = _fresh(model, 1), _fresh(model, 1), _fresh(model, 2)
    assert torch.equal(torch.rand(()), expected)
    assert torch.equal(one.network[0].weight, same.network[0].weight)
    assert not torch.equal(one.network[0].weight, other.network[0].weight)


def test_attention_can_be_drawn_anew():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, images):
            return self.head(self.layer(images[:, 0]).mean(1))

    model = _wrapped(Attends())
    fresh = _fresh(model)
    changed = [
        name
        for name, p in model.network.named_parameters()
        if p.ndim > 1 and not torch.equal(p, dict(fresh.network.named_parameters())[name])
    ]
    assert len(changed) == 5


class _Bare(nn.Module):
    """A parameter of the network's own, which nothing can draw anew."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, 3))
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def forward(self, images):
        return self.flat(images) + self.token


class _WithoutParameters(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (_Bare, "the network itself"),
        (_WithoutParameters, "found none"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 3))),
            "weight_v",
        ),
        (
            lambda: nn.Sequential(
                nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 3))
            ),
            "parametrizations",
        ),
    ],
)
def test_what_cannot_be_drawn_anew_is_refused(module, said):
    with pytest.raises(ModelError, match=said):
        _fresh(_in_memory(module()))


def _in_memory(module):
    # Old weight norm keeps a tensor that torch will not copy until the network has run.
    module.requires_grad_(requires_grad=False)
    module(torch.zeros(1, 1, 8, 8))
    return _wrapped(module)
