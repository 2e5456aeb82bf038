"""The small networks: built, saved, recognised, and with layers to compare."""

import pytest
import torch
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.existence.layers import select_layers
from bdaudit.models import build_network, load_model, save_model

ARCHS = ("bdaudit/vgg19_bn_w4", "bdaudit/mobilenet_v2_w4", "bdaudit/vit_p4_w32")


def built(arch, channels=1, classes=5):
    generator = torch.Generator().manual_seed(0)
    return build_network(arch, num_classes=classes, in_channels=channels, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 64])
@pytest.mark.parametrize("arch", ARCHS)
def test_any_channels_and_sizes(arch, side, channels):
    # In eval mode a fresh VGG of this depth answers the same to everything.
    network = built(arch, channels).train()
    images = torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(1))
    logits = network(images)
    assert logits.shape == (4, 5)
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("arch", ARCHS)
def test_a_file_that_does_not_name_it_is_recognised(arch, tmp_path):
    network = built(arch).eval()
    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m", image_shape=(1, 28, 28))
    assert model.arch == arch
    assert model.num_classes == 5
    images = torch.rand(3, 1, 28, 28)
    assert torch.allclose(model.classifier(images), network(images), atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_saved_file_loads_with_no_option(arch, tmp_path):
    network = built(arch, 3).eval()
    path = tmp_path / "m.safetensors"
    save_model(
        path, network, arch=arch, num_classes=5, image_shape=(3, 32, 32), mean=(0.5,), std=(0.2,)
    )
    model = load_model(path, name="m")
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model.classifier(images), network((images - 0.5) / 0.2), atol=1e-6)


def test_layers_to_compare_leave_out_the_stem():
    assert len(select_layers(built("bdaudit/vgg19_bn_w4"))) == 15
    mobilenet = select_layers(built("bdaudit/mobilenet_v2_w4"))
    assert "stem.0" not in mobilenet
    assert len(mobilenet) == 17 * 3 - 1 + 1  # one block does not expand; one convolution follows
    vit = select_layers(built("bdaudit/vit_p4_w32"))
    assert vit == tuple(f"blocks.{i}.{part}" for i in range(6) for part in ("attention", "mlp.2"))


def test_vgg_has_the_papers_sixteen_convolutions_and_mobilenet_its_weights():
    vgg = built("bdaudit/vgg19_bn_w64", 3, 10)
    widths = [m.out_channels for m in vgg.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    ours = built("bdaudit/mobilenet_v2_w32", 3, 1000)
    theirs = build_network("torchvision/mobilenet_v2", num_classes=1000, in_channels=3)
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert count[0] == count[1]


@pytest.mark.parametrize("arch", ARCHS)
def test_it_learns_four_classes_in_a_few_steps(arch):
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(64) % 4
    images = 0.1 * torch.rand(64, 1, 28, 28, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 14 * (label // 2) :, 14 * (label % 2) :] += 0.8
    network = built(arch, classes=4).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize("arch", ["bdaudit/vit_p4_w24", "bdaudit/vgg19_bn_w0", "bdaudit/vgg19_bn"])
def test_widths_that_cannot_be(arch):
    with pytest.raises(ModelError, match="arch:"):
        built(arch)


def test_a_table_has_a_perceptron_of_its_own(tmp_path):
    network = built("bdaudit/mlp_f7_w4").eval()
    rows = torch.rand(3, 1, 1, 7, generator=torch.Generator().manual_seed(1))
    # Every layer by hand, as the matrices that the convolutions are.
    out = rows.flatten(1) @ network.row.weight.flatten(1).T / (1 + 1e-5) ** 0.5
    for layer in (network.hidden[1], network.hidden[4]):
        out = out.relu() @ layer.weight.flatten(1).T / (1 + 1e-5) ** 0.5
    expected = network.head(out.relu())
    assert torch.allclose(network(rows), expected, atol=1e-5)
    assert select_layers(network) == ("hidden.1", "hidden.4")

    torch.save(network.state_dict(), tmp_path / "m.pt")
    model = load_model(tmp_path / "m.pt", name="m")
    assert (model.arch, model.image_shape) == ("bdaudit/mlp_f7_w4", (1, 1, 7))
    assert torch.allclose(model.classifier(rows), expected, atol=1e-5)
    with pytest.raises(ModelError, match="rows of 7 columns"):
        load_model(tmp_path / "m.pt", name="m", image_shape=(1, 1, 8))
    with pytest.raises(ModelError, match=r"mlp_f30_w64"):
        built("bdaudit/mlp_f30")
