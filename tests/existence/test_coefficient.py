"""The whole coefficient: known answers, what it costs, what it leaves behind, bad input."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from bdaudit.errors import ConfigError, DataError, ModelError, NumericsError
from bdaudit.existence import ExistenceConfig, existence_coefficient
from bdaudit.foundation.progress import Progress, finish
from bdaudit.models.classifier import Classifier
from bdaudit.models.preactresnet import preactresnet18
from bdaudit.records import BecRecord
from tests import twins
from tests.pretend import pretended_card, traffic


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(
    original: nn.Module,
    defended: nn.Module,
    *references: nn.Module,
    clean: Tensor,
    triggered: Tensor,
    seed: int = 0,
    listener: Any = None,
    **settings: Any,
) -> tuple[BecRecord, ...]:
    steps = existence_coefficient(
        original,
        defended,
        [(f"reference {index}", model) for index, model in enumerate(references)],
        clean=clean,
        triggered=triggered,
        config=ExistenceConfig(**{"n_bootstrap": 0, **settings}),
        generator=seeded(seed),
    )
    return finish(steps, listener)


def stamped(n: int, size: int = 16, channels: int = 3) -> tuple[Tensor, Tensor]:
    clean = torch.rand(n, channels, size, size, generator=seeded(9))
    triggered = clean.clone()
    triggered[:, :, -3:, -3:] = 1.0
    return clean, triggered


def small_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return preactresnet18(4, width=4).eval()


def nudged(net: nn.Module, share: float, seed: int = 5) -> nn.Module:
    """A copy of `net` with every convolution moved by `share` of its own spread."""
    copied, draw = copy.deepcopy(net), seeded(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim == 4:
                noise = torch.randn(parameter.shape, generator=draw)
                parameter += share * parameter.std() * noise
    return copied


# ---------------------------------------------------------------- known answers


def test_twins() -> None:
    sample = twins.twin_sample(40, seed=0)
    clean = sample.images[twins.twin_targets(sample.labels) >= 0]
    images = {"clean": clean, "triggered": twins.twin_trigger(clean)}
    original, innocent = twins.original_twin(), twins.innocent_twin()

    def bec(defended: nn.Module) -> BecRecord:
        return measure(original, defended, innocent, **images)[0]

    # Asleep behind a bias, the circuit is all there; a weight zeroed, hardly any of it.
    assert bec(original).value == pytest.approx(1.0)
    assert bec(twins.dormant_twin()).value == pytest.approx(1.0)
    assert bec(innocent).value == pytest.approx(0.0)
    removed = bec(twins.removed_twin()).value
    assert removed is not None
    assert removed < 0.5
    first, second = bec(twins.removed_twin()).layers
    assert first.layer == "layer1.conv1"
    assert first.coefficient is None, "all twins share this layer: S_CA is 1"
    assert second.top_channels == (1,), "the channel the trigger drives"


@pytest.mark.parametrize("estimator", ["plain", "debiased"])
def test_itself_is_one_the_reference_is_zero_and_damage_lowers_it(estimator: str) -> None:
    clean, triggered = stamped(24)
    original, reference = small_net(0), small_net(1)
    values = [
        measure(
            original, defended, reference, clean=clean, triggered=triggered, estimator=estimator
        )[0].value
        for defended in (
            copy.deepcopy(original),
            nudged(original, 0.2),
            nudged(original, 1.0),
            copy.deepcopy(reference),
        )
    ]
    assert values[0] == pytest.approx(1.0, abs=1e-4)
    assert values[3] == pytest.approx(0.0, abs=1e-4)
    assert values == sorted(values, reverse=True)


def recipe(
    original: nn.Module, other: nn.Module, clean: Tensor, triggered: Tensor, share: float
) -> dict[str, float]:
    """CKA by layer as a plain script would: keep everything, feature form, numpy float64."""

    def activations(net: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
        kept: dict[str, np.ndarray] = {}

        def keep(name: str) -> Any:
            return lambda module, args, output: kept.update({name: output.double().numpy()})

        handles = [
            module.register_forward_hook(keep(name))
            for name, module in net.named_modules()
            if name.startswith("layer") and name.endswith(("conv1", "conv2"))
        ]
        with torch.no_grad():
            net(images)
        for handle in handles:
            handle.remove()
        return kept

    before, after, theirs = (
        activations(original, clean),
        activations(original, triggered),
        activations(other, triggered),
    )
    values = {}
    for layer, maps in after.items():
        norms = [np.sqrt((m**2).sum((2, 3))).mean(0) for m in (maps, before[layer])]
        change = np.sqrt(((maps - before[layer]) ** 2).sum((2, 3))).mean(0)
        tac = change / ((norms[0] + norms[1]) / 2)
        top = np.argsort(-tac)[: max(1, int(share * len(tac)))]
        x, y = (m[:, top].reshape(len(clean), -1) for m in (maps, theirs[layer]))
        x, y = x - x.mean(0), y - y.mean(0)
        cross = np.linalg.norm(x.T @ y) ** 2
        values[layer] = cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return values


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equals_a_plain_script(channels_last: bool, batch_size: int, share: float) -> None:
    clean, triggered = stamped(20)
    original, reference = small_net(0), small_net(1)
    defended = nudged(original, 0.5)
    record = measure(
        original, defended, reference, clean=clean, triggered=triggered,
        channels_last=channels_last, batch_size=batch_size, top_share=share,
    )[0]  # fmt: skip
    defended_cka = recipe(original, defended, clean, triggered, share)
    reference_cka = recipe(original, reference, clean, triggered, share)
    assert {layer.layer for layer in record.layers} == set(defended_cka)
    for layer in record.layers:
        assert layer.cka_defended == pytest.approx(defended_cka[layer.layer], abs=1e-4)
        assert layer.cka_reference == pytest.approx(reference_cka[layer.layer], abs=1e-4)
    expected = np.mean(
        [
            (defended_cka[name] - reference_cka[name]) / (1 - reference_cka[name])
            for name in defended_cka
        ]
    )
    assert record.value == pytest.approx(expected, abs=1e-3)


def test_a_channel_off_the_shortlist_costs_time_but_changes_nothing() -> None:
    # Batches of one pair rank channels badly, so some layers must be run again.
    clean, triggered = stamped(20)
    triggered[0] = clean[0] + 1e-3 * torch.randn(clean[0].shape, generator=seeded(3))
    nets = small_net(0), nudged(small_net(0), 0.5), small_net(1)
    totals: set[float] = set()
    hard = measure(
        *nets, clean=clean, triggered=triggered, batch_size=2,
        listener=lambda event: totals.add(event.total),
    )[0]  # fmt: skip
    easy = measure(*nets, clean=clean, triggered=triggered, batch_size=64)[0]
    assert max(totals) > min(totals), "no layer had to be run again: choose another case"
    assert hard.value == pytest.approx(easy.value, abs=1e-4)
    for one, other in zip(hard.layers, easy.layers, strict=True):
        assert one.top_channels == other.top_channels


def test_little_memory_means_more_passes_and_the_same_figures() -> None:
    clean, triggered = stamped(64, size=32)
    torch.manual_seed(0)
    original = preactresnet18(4, width=16).eval()
    nets = original, nudged(original, 0.5), nudged(original, 2.0, seed=6)
    passes: Counter[str] = Counter()
    original.register_forward_hook(lambda *_: passes.update(["whole"]))
    original.conv1.register_forward_hook(lambda *_: passes.update(["stem"]))
    roomy = measure(*nets, clean=clean, triggered=triggered)[0]
    few = passes["stem"]
    tight = measure(*nets, clean=clean, triggered=triggered, memory_mb=1)[0]
    assert passes["stem"] - few > few
    assert passes["whole"] == 0, "no pass goes beyond the last layer needed"
    assert tight.value == pytest.approx(roomy.value, abs=1e-5)


def test_layers_are_measured_together_where_their_maps_fit_but_their_shortlists_do_not() -> None:
    clean, triggered = stamped(64, size=32)
    torch.manual_seed(0)
    original = preactresnet18(4, width=8).eval()
    nets = original, nudged(original, 0.5), nudged(original, 2.0, seed=6)
    passes: Counter[str] = Counter()
    for name, net in zip("ADC", nets, strict=True):
        net.conv1.register_forward_hook(lambda *_, name=name: passes.update([name]))
    original.layer3[0].conv1.register_forward_hook(lambda *_: passes.update(["deep in A"]))
    roomy = measure(*nets, clean=clean, triggered=triggered, batch_size=128)[0]
    assert passes == {"A": 2, "D": 2, "C": 2, "deep in A": 2}
    passes.clear()
    tight = measure(*nets, clean=clean, triggered=triggered, batch_size=128, memory_mb=2)[0]
    # The original's first layers are run again, and no deeper; nobody else's.
    assert passes == {"A": 3, "D": 2, "C": 2, "deep in A": 2}
    assert tight.value == pytest.approx(roomy.value, abs=1e-5)


def test_too_little_memory_halves_the_batch_and_the_same_comes_out() -> None:
    clean, triggered = stamped(20)
    nets = small_net(0), nudged(small_net(0), 0.5), small_net(1)
    expected = measure(*nets, clean=clean, triggered=triggered, batch_size=4)[0]
    sizes = []

    def limited(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("too much")

    handle = nets[1].register_forward_pre_hook(limited)
    found = measure(*nets, clean=clean, triggered=triggered, batch_size=16)[0]
    assert [size for size in sizes if size > 4] == [16, 8]
    assert found.value == expected.value
    handle.remove()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card, which is not pretended")
def test_a_card_is_waited_for_once_a_model_and_images_are_sent_once() -> None:
    clean, triggered = stamped(24)
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 20, 3))
        for _ in "ADC"
    ]
    settings: dict[str, Any] = {"estimator": "debiased", "n_bootstrap": 20}
    here = measure(*nets, clean=clean, triggered=triggered, **settings)[0]
    waits = []
    for batch_size in (4, 24):
        with pretended_card() as card:
            on_card = [copy.deepcopy(net).to(card) for net in nets]
            with traffic() as seen:
                found = measure(
                    *on_card, clean=clean, triggered=triggered, batch_size=batch_size, **settings
                )[0]
        assert found.value == pytest.approx(here.value, abs=1e-5)
        assert (found.low, found.high) == pytest.approx((here.low, here.high), abs=1e-4)
        assert seen.sent.count((24, 3, 16, 16)) == 2
        assert {shape for shape in seen.sent if len(shape) == 4} == {
            (24, 3, 16, 16), (1, 3, 16, 16),
        }  # fmt: skip
        waits.append(len(seen.waits))
    assert waits[0] == waits[1] <= 2 + 2 + len(nets), "not one more for more batches"


# ---------------------------------------------------------------- the interval, the sample, seeds


def test_interval_holds_the_value_and_narrows_with_images() -> None:
    nets = small_net(0), nudged(small_net(0), 0.5), small_net(1)
    widths = []
    for n in (12, 100):
        clean, triggered = stamped(n)
        record = measure(*nets, clean=clean, triggered=triggered, n_bootstrap=100)[0]
        assert record.low is not None
        assert record.high is not None
        assert record.value is not None
        assert record.low < record.value < record.high
        assert record.n_bootstrap == 100
        widths.append(record.high - record.low)
    assert widths[1] < 0.6 * widths[0]


def test_no_interval_where_there_are_too_few_images_to_halve() -> None:
    clean, triggered = stamped(7)
    record = measure(
        small_net(0), nudged(small_net(0), 0.5), small_net(1),
        clean=clean, triggered=triggered, n_bootstrap=50,
    )[0]  # fmt: skip
    assert record.value is not None
    assert (record.low, record.high, record.n_bootstrap) == (None, None, 0)


def test_same_seed_same_record_and_the_sample_is_drawn_with_it() -> None:
    clean, triggered = stamped(40)
    nets = small_net(0), nudged(small_net(0), 0.5), small_net(1)
    one, again, other = (
        measure(*nets, clean=clean, triggered=triggered, seed=seed, n_samples=15, n_bootstrap=20)[
            0
        ].model_dump(exclude={"elapsed_s"})
        for seed in (0, 0, 1)
    )
    assert one == again
    assert one["n_samples"] == 15
    assert one["value"] != other["value"]


# ---------------------------------------------------------------- cost and traces left behind


def test_every_model_sees_every_image_once() -> None:
    class Counting(Classifier):
        seen = 0

        def forward(self, images: Tensor) -> Tensor:
            self.seen += len(images)
            return super().forward(images)

    clean, triggered = stamped(50)
    original = Counting(small_net(0))
    others = [Counting(nudged(small_net(0), 0.1)), Counting(small_net(1)), Counting(small_net(2))]
    events: list[Progress] = []
    records = measure(original, *others, clean=clean, triggered=triggered, listener=events.append)
    # And one image more, by which a misfit shows before the long passes.
    assert original.seen == 100 + 1
    assert [other.seen for other in others] == [50 + 1] * 3
    assert [record.reference for record in records] == ["reference 0", "reference 1"]
    assert events[-1].done == events[-1].total == 100 + 3 * 50
    assert [event.done for event in events] == sorted(event.done for event in events)


def hooks_of(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


@pytest.mark.parametrize("how", ["finished", "closed", "failed"])
def test_models_are_left_as_they_were(how: str) -> None:
    clean, triggered = stamped(30)
    nets = [small_net(0), nudged(small_net(0), 0.5), small_net(1)]
    if how == "failed":
        with torch.no_grad():
            nets[2].layer4[1].conv2.weight.fill_(float("nan"))
    for net in nets:
        net.train()
        net.layer2.eval()
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in nets]
    steps = existence_coefficient(
        *nets[:2], [("reference", nets[2])], clean=clean, triggered=triggered,
        config=ExistenceConfig(batch_size=4), generator=seeded(),
    )  # fmt: skip
    if how == "finished":
        finish(steps)
    elif how == "failed":
        with pytest.raises(NumericsError, match=r"reference: layer layer4\.1\.conv2 "):
            finish(steps)
    else:
        for _ in range(20):
            next(steps)
            assert not torch.is_inference_mode_enabled(), "leaked to whoever drives the step"
        assert sum(map(hooks_of, nets)) > 0
        steps.close()
    for net, state in zip(nets, before, strict=True):
        assert hooks_of(net) == 0
        assert net.training
        assert net.layer1.training
        assert not net.layer2[0].conv1.training
        assert all(parameter.grad is None for parameter in net.parameters())
        for key, value in net.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
        loss = net(clean[:2]).sum()
        loss.backward()  # fails if a parameter had become an inference tensor


# ---------------------------------------------------------------- other architectures


def vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=20, mlp_dim=40
    )
    return net.eval()


def timm_net(name: str, seed: int, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=4, **settings).eval()


def swin(seed: int) -> nn.Module:
    return timm_net(
        "swin_tiny_patch4_window7_224", seed, img_size=32, window_size=4, embed_dim=24,
        depths=(2, 2), num_heads=(2, 2),
    )  # fmt: skip


def small_timm_vit(seed: int) -> nn.Module:
    return timm_net(
        "vit_tiny_patch16_224", seed, img_size=16, patch_size=4, embed_dim=20, depth=2, num_heads=2
    )


class OldClip(nn.Module):
    """Attention with tokens first, as CLIP's towers were written."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.attn = nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).permute(2, 0, 1)  # (T, N, C)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.linear(x.mean(0))


def old_clip(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return OldClip().eval()


@pytest.mark.parametrize(
    ("build", "size"), [(vit, 16), (small_timm_vit, 16), (swin, 32), (old_clip, 16)]
)
def test_transformers(build: Any, size: int) -> None:
    clean, triggered = stamped(16, size=size)
    original, reference = build(0), build(1)
    for defended, expected in ((copy.deepcopy(original), 1.0), (copy.deepcopy(reference), 0.0)):
        record = measure(
            original, defended, reference, clean=clean, triggered=triggered, batch_size=6
        )[0]
        assert record.value == pytest.approx(expected, abs=1e-3)


def test_tokens_are_read_image_by_image() -> None:
    clean, triggered = stamped(12)
    nets = vit(0), vit(1)
    tokens: list[np.ndarray] = []
    for net in nets:
        layer = net.encoder.layers.encoder_layer_1.self_attention
        handle = layer.register_forward_hook(lambda m, a, output: tokens.append(output[0].numpy()))
        with torch.no_grad():
            net(triggered)
        handle.remove()
    record = measure(
        *nets, vit(2), clean=clean, triggered=triggered, top_share=0.2, batch_size=5,
        include=("*layer_1.self_attention",),
    )[0]  # fmt: skip
    (layer_record,) = record.layers
    assert tokens[0].shape == (12, 17, layer_record.channels)
    kept = list(layer_record.top_channels)
    assert len(kept) == 4
    x, y = (maps[:, :, kept].reshape(12, -1).astype(np.float64) for maps in tokens)
    x, y = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert layer_record.cka_defended == pytest.approx(expected, abs=1e-4)


def test_bfloat16_passes_give_nearly_the_same() -> None:
    clean, triggered = stamped(24)
    nets = small_net(0), nudged(small_net(0), 0.3), small_net(1)
    exact = measure(*nets, clean=clean, triggered=triggered)[0].value
    rough = measure(*nets, clean=clean, triggered=triggered, precision="bfloat16")[0].value
    assert exact is not None
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.03)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu_and_models_come_home() -> None:
    clean, triggered = stamped(40)
    nets = small_net(0), nudged(small_net(0), 0.5), small_net(1)
    values = []
    for device in ("cpu", "cuda"):
        steps = existence_coefficient(
            *nets[:2], [("reference", nets[2])], clean=clean, triggered=triggered,
            generator=seeded(), device=torch.device(device),
        )  # fmt: skip
        values.append(finish(steps)[0].value)
    assert values[1] == pytest.approx(values[0], abs=5e-3)
    assert all(p.device.type == "cpu" for net in nets for p in net.parameters())


# ---------------------------------------------------------------- edges and bad input


def test_a_defence_that_killed_the_circuit_scores_zero_similarity() -> None:
    clean, triggered = stamped(16)
    original, defended = small_net(0), small_net(0)
    with torch.no_grad():
        defended.layer4[1].conv2.weight.zero_()
    record = measure(original, defended, small_net(1), clean=clean, triggered=triggered)[0]
    assert record.layers[-1].cka_defended == 0.0
    assert record.layers[-1].coefficient is not None
    assert record.layers[-1].coefficient < 0


def test_a_layer_dead_in_the_original_is_left_out_with_a_reason() -> None:
    clean, triggered = stamped(16)
    original = small_net(0)
    with torch.no_grad():
        original.layer4[1].conv2.weight.zero_()
    record = measure(
        original, nudged(original, 0.3), small_net(1), clean=clean, triggered=triggered
    )[0]
    assert record.value is not None
    assert record.layers[-1].cka_defended is None
    assert "do not vary" in str(record.layers[-1].reason)


class WithSpareHead(nn.Module):
    """A network with a convolution that only training uses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.body = net
        self.auxiliary = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def test_a_layer_that_never_runs_is_left_out_with_a_reason() -> None:
    clean, triggered = stamped(8)
    nets = [WithSpareHead(net) for net in (small_net(0), small_net(2), small_net(1))]
    record = measure(*nets, clean=clean, triggered=triggered)[0]
    assert record.value is not None
    assert record.layers[-1].layer == "auxiliary"
    assert "never runs" in str(record.layers[-1].reason)


def test_a_layer_used_twice_is_refused() -> None:
    shared = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.ReLU(), shared, nn.Conv2d(3, 3, 1))
    clean, triggered = stamped(8)
    with pytest.raises(ModelError, match="layer 1 runs more than once"):
        measure(net, net, net, clean=clean, triggered=triggered)


def test_a_defended_model_of_another_architecture_is_refused() -> None:
    clean, triggered = stamped(8)
    other = torchvision.models.resnet18(num_classes=4)
    with pytest.raises(ModelError, match=r"defended: ResNet has no layer|defended: layer layer1"):
        measure(small_net(0), other, small_net(1), clean=clean, triggered=triggered)
    narrower = preactresnet18(4, width=2)
    with pytest.raises(ModelError, match=r"defended: layer layer1.0.conv1: expected .*channels=4"):
        measure(small_net(0), narrower, small_net(1), clean=clean, triggered=triggered)


def test_a_reference_of_another_architecture_leaves_the_others_standing() -> None:
    clean, triggered = stamped(12)
    misfit, good = measure(
        small_net(0), nudged(small_net(0), 0.3), vit(0), small_net(1),
        clean=clean, triggered=triggered,
    )  # fmt: skip
    assert misfit.value is None
    assert "VisionTransformer has no layer" in str(misfit.reason)
    alone = measure(
        small_net(0), nudged(small_net(0), 0.3), small_net(1), clean=clean, triggered=triggered
    )[0]
    assert good.value == alone.value


def test_a_reference_equal_to_the_original_is_undefined_with_a_reason() -> None:
    clean, triggered = stamped(12)
    record = measure(small_net(0), small_net(1), small_net(0), clean=clean, triggered=triggered)[0]
    assert record.value is None
    assert record.reason == "undefined in every layer"


def test_without_a_reference_nothing_is_measured() -> None:
    clean, triggered = stamped(8)
    assert measure(small_net(0), small_net(1), clean=clean, triggered=triggered) == ()


def test_images_must_pair_up_and_be_enough() -> None:
    clean, triggered = stamped(8)
    net = small_net(0)
    with pytest.raises(DataError, match="at least 4"):
        measure(net, net, net, clean=clean[:3], triggered=triggered[:3])
    with pytest.raises(DataError, match="same images"):
        measure(net, net, net, clean=clean, triggered=triggered[:5])


@pytest.mark.parametrize(
    "settings",
    [
        {"top_share": 0.0},
        {"top_share": 1.5},
        {"estimator": "other"},
        {"n_samples": 3},
        {"n_bootstrap": 5},
        {"confidence": 1.0},
        {"batch_size": 0},
        {"precision": "float16"},
        {"memory_mb": 0},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ExistenceConfig(**settings)
