"""Purifying defences: the trigger of a real small model fades, and nothing else happens."""

import pytest
import torch
from torch import nn

from bdaudit.defenses.anp import AnpConfig
from bdaudit.defenses.catalogue import DEFENSES, defense_config
from bdaudit.defenses.i_bau import IBauConfig, add_trigger, hypergradient, trigger_loss
from bdaudit.defenses.nad import NadConfig, attention_layers, attention_map
from bdaudit.defenses.pam import PamConfig, moved_toward
from bdaudit.defenses.pruning import batch_norms
from bdaudit.defenses.synthesis import SynthesisConfig, TriggerNetwork, train_trigger_network
from bdaudit.errors import ConfigError, DataError, ModelError
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, build_network, preactresnet18

STILL = {"tuning.flip": False, "tuning.max_shift": 0.0}  # digits are not flipped
STILL_TEACHER = {"teacher.flip": False, "teacher.max_shift": 0.0}
SETTINGS = {
    "nad": {**STILL, **STILL_TEACHER},
    "pam": STILL,
    "i-bau": {"batch_size": 32},  # 300 images make too few mini-batches of 100
    "anp": {"flip": False, "max_shift": 0.0},
}
# Few steps, where a test is about anything but the trigger.
QUICK = {
    "nad": {**SETTINGS["nad"], "tuning.n_epochs": 1, "teacher.n_epochs": 1},
    "pam": {**STILL, "tuning.n_epochs": 1, "n_rounds": 2, "synthesis.n_epochs": 1},
    "i-bau": {"n_rounds": 1},
    "anp": {"n_steps": 6, "batch_size": 32, "threshold": 1.0},
    "clp": {"u": 0.5},
    "rnp": {"max_unlearning_epochs": 2, "recovery_epochs": 1, "threshold": 1.0,
            "max_acc_loss": 0.9},
    "seam": {**STILL, "tuning.n_epochs": 1, "max_forgetting_epochs": 2},
    "etf-ft": {**STILL, "tuning.n_epochs": 1},
    "mm-bm": {"n_epochs": 3},
}  # fmt: skip
NO_CHANCE = {"anp", "rnp", "clp", "mm-bm"}  # what they prune or bound may be the same
every = pytest.mark.parametrize("name", QUICK)


def _defend(name, classifier, images, *, settings, seed=0):
    config = defense_config(name, settings)
    generator = torch.Generator().manual_seed(seed)
    return finish(DEFENSES[name].run(classifier, *images, config=config, generator=generator))


def _tensors(net):
    return [tensor.clone() for tensor in net.state_dict().values()]


def _same(first, second):
    if len(first) != len(second):  # bounds are tensors of their own
        return False
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Without a defence: accuracy .97, ASR 1. Bounds leave room for another machine's rounding.
@pytest.mark.parametrize(
    ("name", "least_acc", "most_asr"),
    [
        ("nad", 0.8, 0.6),
        pytest.param("pam", 0.85, 0.5, marks=pytest.mark.slow),
        pytest.param("i-bau", 0.8, 0.75, marks=pytest.mark.slow),
    ],
)
def test_the_trigger_fades_and_the_task_stays(victim, name, least_acc, most_asr):
    defended = _defend(name, victim.classifier, victim.clean, settings=SETTINGS[name])
    assert victim.asr(defended) < most_asr
    assert victim.accuracy(defended) > least_acc


@pytest.mark.slow
def test_neurons_pruned_by_their_masks_carry_the_trigger(wide):
    defended = _defend("anp", wide.classifier, wide.clean, settings=SETTINGS["anp"])
    assert wide.asr(defended) < 0.5
    assert wide.accuracy(defended) > 0.85


@every
def test_inputs_are_left_alone_and_the_seed_decides(victim, name):
    images = tuple(part[:64] for part in victim.clean)
    before, copies = _tensors(victim.classifier), [part.clone() for part in images]
    torch.manual_seed(1)
    first = _defend(name, victim.classifier, images, settings=QUICK[name])
    torch.manual_seed(2)
    assert _same(
        _tensors(first), _tensors(_defend(name, victim.classifier, images, settings=QUICK[name]))
    )
    assert _same(before, _tensors(victim.classifier))
    assert not _same(before, _tensors(first))
    assert _same(copies, images)
    assert not any(part.training for part in first.modules())
    if name != "mm-bm":  # whose bounds are at work there
        assert not any(part._forward_hooks for part in first.modules())
    assert not any(p.requires_grad or p.grad is not None for p in first.parameters())
    if name not in NO_CHANCE:
        other = _defend(name, victim.classifier, images, settings=QUICK[name], seed=1)
        assert not _same(_tensors(first), _tensors(other))


@every
def test_images_that_do_not_fit_are_refused(victim, name):
    images, labels = victim.clean
    with pytest.raises(DataError, match="expected images"):
        _defend(name, victim.classifier, (images, labels[:5]), settings=QUICK[name])


@every
def test_bf16_autocast_around_it(victim, name):
    images = tuple(part[:64] for part in victim.clean)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        defended = _defend(name, victim.classifier, images, settings=QUICK[name])
    for parameter in defended.parameters():
        assert parameter.dtype == torch.float32
        assert bool(parameter.isfinite().all())


@pytest.mark.parametrize(
    ("arch", "side"),
    [("bdaudit/preactresnet18_w4", 16), ("torchvision/mobilenet_v2", 64)],
)
@every
def test_other_convolutional_networks(name, arch, side):
    network = build_network(arch, num_classes=3, generator=torch.Generator().manual_seed(0))
    _runs(name, network, side)


@every
def test_a_plain_stack_of_convolutions(name):
    """As in a VGG: nothing is named by stage, and dropout stands before the head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3)]
    _runs(name, nn.Sequential(*layers, *head), 16)


@pytest.mark.parametrize("name", ["nad", "i-bau", "pam", "seam", "etf-ft", "mm-bm"])
def test_a_transformer(name):
    _runs(name, _transformer(), 16)


@pytest.mark.parametrize("name", ["anp", "clp", "rnp"])
def test_neurons_of_a_transformer_are_not_pruned(name):
    with pytest.raises(ModelError, match="batch norm"):
        _runs(name, _transformer(), 16)


def _transformer() -> nn.Module:
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=16, patch_size=4, num_classes=3, embed_dim=16, depth=4, num_heads=2
    )


def _runs(name, network, side):
    classifier = Classifier(network, mean=(0.5,) * 3, std=(0.5,) * 3).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((8, 3, side, side), generator=generator), torch.arange(8) % 3
    settings = {**QUICK[name], "batch_size": 4, "n_steps": 2} if name == "anp" else QUICK[name]
    defended = _defend(name, classifier, images, settings=settings)
    assert bool(defended(images[0]).isfinite().all())
    assert not _same(_tensors(classifier), _tensors(defended))


# ---- NAD -----------------------------------------------------------------------------------------


def test_stages_of_a_residual_network_and_blocks_of_a_transformer():
    images = torch.rand(2, 1, 16, 16)
    residual = preactresnet18(10, width=4, in_channels=1)
    assert attention_layers(residual, images) == ["layer1", "layer2", "layer3", "layer4"]
    assert attention_layers(_transformer(), torch.rand(2, 3, 16, 16)) == [
        f"blocks.{k}" for k in range(4)
    ]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(ModelError, match="found neither"):
        attention_layers(flat, images)


def test_attention_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[-2.0, 0.0]]]])  # (1, 2, 1, 2)
    assert torch.allclose(attention_map(maps, 2.0), torch.tensor([[5.0, 4.0]]) / 41**0.5)
    tokens = maps.flatten(2).transpose(1, 2)  # (1, 2, 2)
    assert torch.allclose(attention_map(tokens, 2.0), attention_map(maps, 2.0))


# ---- ANP -----------------------------------------------------------------------------------------


def test_pruning_stops_at_the_allowed_loss(victim):
    def n_pruned(**changes):
        settings = {"n_steps": 3, "threshold": 1.0, "flip": False, "max_shift": 0.0, **changes}
        defended = _defend("anp", victim.classifier, victim.clean, settings=settings)
        neurons, norms = batch_norms(defended, "ANP")
        weights = [neurons.shaken[f"{name}.weight"] for name in norms]
        return sum(int((weight == 0).sum()) for weight in weights)

    counts = [n_pruned(max_acc_loss=loss) for loss in (0.0, 0.3, 0.9)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert n_pruned(max_acc_loss=0.9, threshold=0.0) < counts[-1]


# ---- i-BAU ---------------------------------------------------------------------------------------


def test_hypergradient_against_the_closed_form():
    """On a quadratic trigger loss, the answer of the trigger is known."""

    class Line(nn.Module):
        """Logits (n, 2): the pixel times a weight, and 0."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x):
            scores = x.double().flatten(1).sum(1) * self.weight
            return torch.stack([scores, torch.zeros_like(scores)], 1)

    net = Line()
    images, labels = torch.full((2, 1, 1, 1), 0.5), torch.tensor([0, 1])
    trigger = torch.full((1, 1, 1, 1), 0.1)
    # A heavy weight on the trigger's length makes its loss strongly convex, the map contracting.
    config = IBauConfig(n_iterations=60, trigger_weight=3.0, map_rate=0.1)
    batch = images, labels
    stamped = torch.tensor([0])
    (found,) = hypergradient(net, [net.weight], trigger, batch, batch, stamped, config)

    def trigger_slope(d, w):
        with torch.no_grad():
            net.weight.copy_(w)
        d = d.detach().requires_grad_()
        return torch.autograd.grad(trigger_loss(net, d, images, labels, config), d)[0]

    def outer(d, w):
        with torch.no_grad():
            net.weight.copy_(w)
            stamped_images = torch.cat([add_trigger(images[:1], d), images[1:]])
            return float(nn.functional.cross_entropy(net(stamped_images).float(), labels))

    # Implicit function theorem by finite differences: dd/dw = -H^-1 (d slope / dw).
    w, h = torch.tensor(0.7, dtype=torch.float64), 1e-2
    hessian = (trigger_slope(trigger + h, w) - trigger_slope(trigger - h, w)) / (2 * h)
    mixed = (trigger_slope(trigger, w + h) - trigger_slope(trigger, w - h)) / (2 * h)
    answer = float(-mixed / hessian)
    direct = (outer(trigger, w + h) - outer(trigger, w - h)) / (2 * h)
    through = (outer(trigger + h, w) - outer(trigger - h, w)) / (2 * h) * answer
    assert abs(through) > 1e-3  # else the test says nothing about the trigger's answer
    assert float(found) == pytest.approx(direct + through, rel=0.02)


# ---- PAM -----------------------------------------------------------------------------------------


def test_weights_move_a_length_of_rho_back_and_return():
    net = nn.Linear(3, 2)
    start = [parameter.detach() + 1.0 for parameter in net.parameters()]
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with moved_toward(net, start, 0.5):
        moves = torch.cat(
            [(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]
        )
    assert float(moves.norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(moves, moves.mean().expand_as(moves))  # straight toward the start
    assert _same(before, list(net.parameters()))
    with moved_toward(net, before, 0.5):  # already there
        assert _same(before, list(net.parameters()))


def test_stamps_are_small_and_change_what_the_model_answers(victim):
    images, labels = victim.clean
    draw = torch.Generator().manual_seed(0)
    network = TriggerNetwork(tuple(images.shape[1:]), draw)
    assert (
        float((network(images) - images).detach().abs().max()) < 0.2
    )  # it starts near the identity
    config = SynthesisConfig()
    goes_to = finish(
        train_trigger_network(
            network,
            victim.classifier,
            images,
            labels,
            target=None,
            config=config,
            generator=draw,
            title="stamps",
        )
    )
    with torch.no_grad():
        changed = network(images)
        answers = victim.classifier(changed).argmax(1)
    assert float((changed - images).square().mean()) < 2 * config.bound
    others = answers[answers != labels]
    assert len(others) > 0.4 * len(labels)
    assert goes_to == int(others.bincount().argmax())


# ---- bad settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NadConfig(betas=()), "betas"),
        (lambda: NadConfig(betas=(1.0, -1.0)), "betas"),
        (lambda: NadConfig(power=0.5), "power"),
        (lambda: AnpConfig(eps=0.0), "eps"),
        (lambda: AnpConfig(alpha=1.5), "alpha"),
        (lambda: AnpConfig(n_steps=0), "n_steps"),
        (lambda: AnpConfig(max_acc_loss=1.0), "max_acc_loss"),
        (lambda: IBauConfig(n_rounds=0), "n_rounds"),
        (lambda: IBauConfig(learning_rate=float("nan")), "learning_rate"),
        (lambda: IBauConfig(stamped_share=0.0), "stamped_share"),
        (lambda: IBauConfig(trigger_weight=-1.0), "trigger_weight"),
        (lambda: PamConfig(rho=-1.0), "rho"),
        (lambda: PamConfig(n_rounds=0), "n_rounds"),
        (lambda: PamConfig(stamped_share=2.0), "stamped_share"),
        (lambda: SynthesisConfig(bound=0.0), "bound"),
        (lambda: SynthesisConfig(n_epochs=0), "n_epochs"),
        (lambda: SynthesisConfig(benign_weight=-1.0), "benign_weight"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
