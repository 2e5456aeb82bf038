"""Which layers are chosen, on the architectures people use."""

from __future__ import annotations

import pytest
import timm
import torchvision
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.existence.layers import network_of, select_layers
from bdaudit.models.classifier import Classifier
from bdaudit.models.preactresnet import preactresnet18


def test_preactresnet_without_stem_and_shortcuts() -> None:
    expected = tuple(
        f"layer{stage}.{block}.conv{conv}"
        for stage in (1, 2, 3, 4)
        for block in (0, 1)
        for conv in (1, 2)
    )
    assert select_layers(preactresnet18(10, width=4)) == expected


def test_torchvision_resnet_counts() -> None:
    # 53 convolutions: the stem, 4 downsampling ones, 48 in blocks.
    layers = select_layers(torchvision.models.resnet50())
    assert len(layers) == 48
    assert not [name for name in layers if "downsample" in name]


def test_torchvision_vit_takes_attention_whole_and_the_last_mlp_layer() -> None:
    layers = select_layers(
        torchvision.models.VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
        )
    )
    prefix = "encoder.layers.encoder_layer_"
    assert layers == tuple(
        f"{prefix}{index}.{part}" for index in (0, 1) for part in ("self_attention", "mlp.3")
    )


def test_timm_vit() -> None:
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    )
    assert select_layers(net) == (
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc2",
        "blocks.1.attn.proj",
        "blocks.1.mlp.fc2",
    )


def test_plain_transformer_encoder() -> None:
    net = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    assert select_layers(net) == ("self_attn", "linear2")


def test_patterns() -> None:
    net = preactresnet18(10, width=4)
    assert select_layers(net, include=("layer4.*.conv2", "linear")) == (
        "layer4.0.conv2",
        "layer4.1.conv2",
        "linear",
    )
    assert "layer1.0.conv1" not in select_layers(net, exclude=("layer1.*",))
    assert select_layers(net, include=("conv1",)) == ("conv1",), "asked for by name, the stem is in"


def test_nothing_left_says_what_there_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"no layer to compare.*: 0, 2;"):
        select_layers(net)


def test_names_are_those_of_the_bare_network() -> None:
    net = preactresnet18(10, width=4)
    assert network_of(Classifier(net)) is net
    assert network_of(net) is net


def test_a_pattern_that_names_no_layer_is_not_passed_over() -> None:
    net = preactresnet18(10, width=4)
    with pytest.raises(ModelError, match=r"is called 'layer5\.\*'"):
        select_layers(net, include=("layer4.*.conv2", "layer5.*"))
