"""Names, heads, stems and fingerprints of architectures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bdaudit.errors import ModelError
from bdaudit.models import build_network
from bdaudit.models.architectures import (
    blueprint,
    build_unfilled,
    canonical_name,
    known_torchvision,
    native_input_size,
)
from bdaudit.models.fingerprint import (
    FAMILIES,
    closest_architectures,
    drop_wrapper_prefix,
    match_blueprint,
)
from bdaudit.models.preactresnet import preactresnet18

SMALL = [
    ("torchvision/resnet18", 32),
    ("torchvision/squeezenet1_1", 32),
    ("torchvision/mobilenet_v3_small", 32),
    ("torchvision/googlenet", 32),
    ("torchvision/inception_v3", 75),
    ("bdaudit/preactresnet18_w4", 32),
    ("timm/resnet10t", 32),
    ("timm/test_vit", 160),
]


def tensors_on_meta(arch: str, num_classes: int, in_channels: int = 3) -> dict[str, torch.Tensor]:
    network = build_unfilled(arch, num_classes=num_classes, in_channels=in_channels)
    return dict(network.state_dict())


@pytest.mark.parametrize(("arch", "side"), SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_built_networks_take_the_channels_and_give_the_classes_asked_for(
    arch: str, side: int, in_channels: int
) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    network = build_network(arch, num_classes=5, in_channels=in_channels).eval()
    with torch.no_grad():
        assert network(torch.rand(2, in_channels, side, side)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet18", "vgg19_bn", "vit_b_16", "convnext_tiny"])
def test_backdoorbench_names_mean_torchvision(name: str) -> None:
    assert canonical_name(name) == f"torchvision/{name}"


def test_backdoorbench_preactresnet_is_ours() -> None:
    assert canonical_name("preactresnet18") == "bdaudit/preactresnet18"
    ours = blueprint("bdaudit/preactresnet18").shapes
    built = {n: tuple(t.shape) for n, t in preactresnet18(7, width=64).state_dict().items()}
    assert ours == built


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("torchvision/resnet19", "torchvision/resnet18"),
        ("torchvison/resnet18", "torchvision/resnet18"),
        ("bdaudit/preactresnet", "bdaudit/preactresnet18"),
        ("senet18", "unknown architecture"),
        ("bdaudit/preactresnet18_w99999999999", "unknown architecture"),
        ("bdaudit/preactresnet18_w0", "width of 1"),
        ("", "unknown architecture"),
    ],
)
def test_unknown_names_are_met_with_similar_ones(arch: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        build_network(arch, num_classes=3)


@pytest.mark.parametrize("name", ["resnet18x", "hf-hub:somebody/model", "hf_hub:x/y", "../x"])
def test_timm_names_are_looked_up_and_never_fetched(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="has no model"):
        build_network(f"timm/{name}", num_classes=3)


def test_a_generator_settles_the_weights_and_spares_the_global_one() -> None:
    before = torch.random.get_rng_state()
    built = [
        build_network(
            "bdaudit/preactresnet18_w2",
            num_classes=3,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]
    first, same, other = (network.get_parameter("conv1.weight") for network in built)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_blueprint_finds_head_and_stem() -> None:
    plan = blueprint("torchvision/vgg11_bn")
    assert plan.head == {"classifier.6.weight": 1, "classifier.6.bias": 1}
    assert plan.stem == "features.0.weight"


def test_an_unfilled_network_is_whole_once_it_is_filled() -> None:
    """Compares with the network built and filled the plain way."""
    for arch in ("torchvision/resnet18", "torchvision/swin_t", "timm/test_vit"):
        if arch.startswith("timm/"):
            pytest.importorskip("timm")
        plain = build_network(arch, num_classes=4).eval()
        unfilled = build_unfilled(arch, num_classes=4, in_channels=3).eval()
        unfilled.load_state_dict(plain.state_dict(), assign=True)
        side = (native_input_size(plain) or (64, 64))[0]
        images = torch.rand(1, 3, side, side)
        with torch.no_grad():
            assert torch.equal(plain(images), unfilled(images))


@pytest.mark.parametrize(
    ("arch", "in_channels"),
    [
        ("torchvision/resnet18", 3),
        ("torchvision/resnet18", 1),
        ("torchvision/vgg11_bn", 3),
        ("torchvision/vit_b_16", 3),
        ("bdaudit/preactresnet18", 3),
        ("bdaudit/preactresnet18_w16", 1),
        ("bdaudit/preactresnet18_w5", 3),
    ],
)
@pytest.mark.parametrize("num_classes", [2, 43])
def test_architectures_are_recognised_by_their_tensors(
    arch: str, in_channels: int, num_classes: int
) -> None:
    (match,) = closest_architectures(tensors_on_meta(arch, num_classes, in_channels))
    assert (match.arch, match.score) == (arch, 1.0)
    assert (match.num_classes, match.in_channels) == (num_classes, in_channels)


def test_every_torchvision_classifier_belongs_to_one_family() -> None:
    for name in known_torchvision():
        assert sum(bool(re.fullmatch(pattern, name)) for pattern, _ in FAMILIES) == 1, name


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "marker"), FAMILIES)
def test_the_last_member_of_each_family_is_recognised(pattern: str, marker: str) -> None:
    name = [name for name in known_torchvision() if re.fullmatch(pattern, name)][-1]
    tensors = tensors_on_meta(f"torchvision/{name}", 9)
    assert marker in tensors
    (match,) = closest_architectures(tensors)
    assert (match.arch, match.num_classes) == (f"torchvision/{name}", 9)


def test_a_near_miss_is_ranked_and_not_taken() -> None:
    tensors = tensors_on_meta("torchvision/resnet18", 10)
    tensors["conv1.weight"] = torch.empty(64, 3, 3, 3)  # the usual edit for small images
    matches = closest_architectures(tensors)
    assert matches[0].arch == "torchvision/resnet18"
    assert not matches[0].fits
    assert matches[0].wrong_shapes == (("conv1.weight", (64, 3, 7, 7), (64, 3, 3, 3)),)
    assert matches[0].score == pytest.approx(1 - 1 / len(tensors))
    assert matches[1].score < matches[0].score


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("torchvision/vit_b_16", (224, 224)),
        ("torchvision/maxvit_t", (224, 224)),
        ("torchvision/resnet18", None),
        ("timm/test_vit", (160, 160)),
        ("timm/resnet10t", None),
        ("bdaudit/preactresnet18_w2", None),
    ],
)
def test_networks_of_one_input_size_are_known(arch: str, size: tuple[int, int] | None) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    assert native_input_size(build_unfilled(arch, num_classes=3, in_channels=3)) == size


def test_an_attribute_of_somebody_elses_module_is_no_input_size() -> None:
    module = nn.Linear(2, 2)
    module.image_size = 5  # type: ignore[assignment]
    assert native_input_size(module) is None


def test_tensors_of_no_known_kind_match_nothing() -> None:
    assert closest_architectures({"a.weight": torch.ones(2, 2)}) == ()


def test_missing_batch_counters_do_not_matter_and_other_tensors_do() -> None:
    plan = blueprint("torchvision/resnet18")
    tensors = tensors_on_meta("torchvision/resnet18", 10)
    without = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    assert match_blueprint(plan, without).fits
    del without["bn1.bias"]
    assert match_blueprint(plan, without).missing == ("bn1.bias",)


def test_a_wrapper_prefix_is_dropped_only_when_all_share_it() -> None:
    one = torch.ones(1)
    assert drop_wrapper_prefix({"1.a": one, "1.b.c": one}) == ({"a": one, "b.c": one}, "1.")
    assert drop_wrapper_prefix({"1.a": one, "2.a": one}) is None
    assert drop_wrapper_prefix({"weight": one}) is None


FACTORY = """
import torch
def plain(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 6))
def sized(num_classes, in_channels=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * in_channels, num_classes))
def broken(): raise RuntimeError("no luck")
def other(): return 3
"""


def test_a_factory_gets_the_arguments_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    plain = build_network(f"{tmp_path}/net.py:plain", num_classes=None)
    sized = build_network(f"{tmp_path}/net.py:sized", num_classes=4, in_channels=1)
    assert isinstance(plain, nn.Sequential)
    assert plain.get_parameter("1.weight").shape == (6, 12)
    assert sized.get_parameter("1.weight").shape == (4, 4)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("net.py:broken", "RuntimeError: no luck"),
        ("net.py:other", r"return a torch\.nn\.Module, got int"),
        ("net.py:absent", "has no function 'absent'"),
        ("net.py:", r"path/to/file\.py:function"),
        ("gone.py:plain", "No such file"),
        ("bad.py:plain", "SyntaxError"),
    ],
)
def test_factories_that_fail_say_so(tmp_path: Path, spelling: str, message: str) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "bad.py").write_text("def plain(:")
    with pytest.raises(ModelError, match=message):
        build_network(f"{tmp_path}/{spelling}", num_classes=None)
