"""What BEC reads of a CLIP's image tower is what its layers compute."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bdaudit.errors import ModelError
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.existence.layers import select_layers
from bdaudit.existence.passes import PassOptions, find_shapes, tapped
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, ClipSettings, ZeroShotNetwork
from bdaudit.models.clip import as_zero_shot, plan_clip, tokenizer_of
from tests.clips import VIT, new_clip

OPTIONS = PassOptions(
    device=torch.device("cpu"), batch_size=4, precision="float32", channels_last=False
)
SIDE = {"vit": 8, "rn": 32}


def zero_shot(tower: str, *, seed: int = 0) -> ZeroShotNetwork:
    """A random image tower against random text embeddings, frozen as a loaded model is."""
    visual = new_clip(tower, seed=seed).visual
    texts = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    network = ZeroShotNetwork(
        visual,
        functional.normalize(texts, dim=1),
        logit_scale=14.0,
        image_size=(SIDE[tower], SIDE[tower]),
        build_visual=lambda: new_clip(tower).visual,
    )
    return network.eval().requires_grad_(False)


def images_for(tower: str, n: int = 4) -> Tensor:
    return torch.rand(n, 3, SIDE[tower], SIDE[tower], generator=torch.Generator().manual_seed(1))


def maps_of(network: nn.Module, layers: tuple[str, ...], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with torch.inference_mode(), tapped(network, layers, found.__setitem__, OPTIONS) as run:
        run(images)
    return {name: maps.clone() for name, maps in found.items()}


def test_a_vit_gives_attention_outputs_and_the_last_mlp_layers() -> None:
    assert select_layers(zero_shot("vit")) == tuple(
        f"visual.transformer.resblocks.{block}.{layer}"
        for block in (0, 1)
        for layer in ("attn", "mlp.c_proj")
    )


def test_a_resnet_gives_its_blocks_without_stem_and_shortcuts() -> None:
    blocks = ("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0")
    assert select_layers(zero_shot("rn")) == tuple(
        f"visual.{block}.conv{number}" for block in blocks for number in (1, 2, 3)
    )


def test_attention_maps_are_those_of_the_output_projection() -> None:
    """Attention by hand, since open_clip's reads the weights of `out_proj` without calling it."""
    network, images = zero_shot("vit"), images_for("vit")
    block = network.visual.transformer.resblocks[1]
    residual: list[Tensor] = []
    fired: list[str] = []
    block.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0]))
    block.attn.out_proj.register_forward_hook(lambda *_: fired.append("out_proj"))
    with torch.inference_mode():
        network(images)
        normed = block.ln_1(residual[0])  # (n, tokens, width)
        n, tokens, width = normed.shape
        heads = block.attn.num_heads
        packed = functional.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)
        # three times (n, heads, tokens, width / heads)
        queries, keys, values = packed.view(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(2, 3) / (width / heads) ** 0.5).softmax(dim=3)
        mixed = (weights @ values).transpose(1, 2).reshape(n, tokens, width)
        expected = functional.linear(mixed, block.attn.out_proj.weight, block.attn.out_proj.bias)
    assert fired == []  # why the attention module is tapped as a whole
    name = "visual.transformer.resblocks.1.attn"
    torch.testing.assert_close(maps_of(network, (name,), images)[name], expected)


def test_mlp_and_convolution_maps_are_their_outputs() -> None:
    for tower, name in (
        ("vit", "visual.transformer.resblocks.0.mlp.c_proj"),
        ("rn", "visual.layer2.1.conv2"),
    ):
        network, images = zero_shot(tower), images_for(tower)
        layer = network.get_submodule(name)
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        with torch.inference_mode():
            network(images)
            expected = (
                functional.linear(seen[0], layer.weight, layer.bias)
                if isinstance(layer, nn.Linear)
                else functional.conv2d(seen[0], layer.weight, padding=1).flatten(2).transpose(1, 2)
            )
        handle.remove()
        torch.testing.assert_close(maps_of(network, (name,), images)[name], expected)


def test_open_clip_s_own_attention_is_tapped_at_its_projection() -> None:
    vision = {**VIT["vision_cfg"], "qk_norm": True}
    visual = open_clip.CLIP(**{**VIT, "vision_cfg": vision}).visual.eval()
    names = select_layers(visual)
    assert "transformer.resblocks.0.attn.out_proj" in names
    assert set(maps_of(visual, names, images_for("vit"))) == set(names)


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_coefficients_of_a_clip(tower: str) -> None:
    original, images = zero_shot(tower), images_for(tower, 24)
    triggered = images.clone()
    triggered[:, :, 1:4, 1:4] = 1.0
    moved = copy.deepcopy(original)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in moved.visual.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=draw)
                parameter += 0.3 * parameter.std() * noise
    innocent = Classifier(zero_shot(tower, seed=7)).eval()
    values = []
    for defended in (original, moved, innocent):
        (record,) = finish(
            existence_coefficient(
                Classifier(original).eval(),
                defended if isinstance(defended, Classifier) else Classifier(defended).eval(),
                [("reference", innocent)],
                clean=images,
                triggered=triggered,
                config=ExistenceConfig(n_bootstrap=0),
                generator=torch.Generator().manual_seed(0),
            )
        )
        values.append(record.value)
    assert values[0] == pytest.approx(1.0, abs=1e-4)
    assert values[2] == pytest.approx(0.0, abs=1e-4)
    assert values[1] is not None
    assert 0.05 < values[1] < 0.995


def test_a_model_of_another_tower_is_refused() -> None:
    with pytest.raises(ModelError, match="has no layer"):
        maps_of(zero_shot("rn"), select_layers(zero_shot("vit")), images_for("rn"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_layers", "layer", "shape"),
    [
        ("RN50", 48, "visual.layer3.0.conv2", (28 * 28, 256)),
        ("ViT-B-32", 24, "visual.transformer.resblocks.11.mlp.c_proj", (50, 768)),
    ],
)
def test_full_size_towers(name: str, n_layers: int, layer: str, shape: tuple[int, int]) -> None:
    settings = ClipSettings(class_names=("a cat", "a dog", "a fish"))
    plan = plan_clip(f"open_clip/{name}", settings)
    tokenizer = tokenizer_of(plan, settings)
    network = as_zero_shot(plan.build().eval(), plan, settings, tokenizer, device="cpu")
    network = network.requires_grad_(False)
    images = torch.rand(2, 3, 224, 224)
    layers = select_layers(network)
    found = find_shapes(network, layers, images, OPTIONS)
    assert len(layers) == n_layers
    assert set(found) == set(layers)
    assert (found[layer].positions, found[layer].channels) == shape
    delta = torch.zeros(1, 3, 224, 224, requires_grad=True)
    logits = network(images + delta)
    assert logits.shape == (2, 3)
    logits[:, 0].sum().backward()
    assert delta.grad is not None
    assert bool(delta.grad.abs().sum() > 0)
