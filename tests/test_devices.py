"""Everything that computes keeps its tensors on one device: a card, or a pretended one.

Where there is a card, these are tests of it (`pytest -m cuda`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import bdaudit
from bdaudit.data import from_arrays
from bdaudit.defenses.catalogue import DEFENSES, defense_config, flat_settings
from bdaudit.defenses.finetune import FinetuneConfig, finetune
from bdaudit.defenses.tuning import TuningConfig
from bdaudit.detection import NOTHING, mark, pixels_of
from bdaudit.foundation.progress import finish
from bdaudit.models import ClipSettings, build_network, load_model
from bdaudit.reactivation import WhiteboxConfig, reactivate_whitebox
from bdaudit.relatives.standins import StandInConfig
from bdaudit.triggers import AllToOne, OnObject, Trigger
from bdaudit.zoo.attacks import ATTACKS, attack_config
from bdaudit.zoo.cleanends import UnlearningConfig, unlearn
from tests.auditing.test_relearn import CONFIG as RELEARN
from tests.clips import ARCH, NAMES, TEMPLATES, new_clip, write_configs
from tests.defenses.pictures import pictures, small_net
from tests.pretend import WrongDeviceError, pretended_card
from tests.twins import (
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    twin_sample,
    twin_trigger,
)
from tests.zoo.attacks import photos

REAL = torch.cuda.is_available()
pytestmark = [pytest.mark.cuda] if REAL else []
TRIGGER = bdaudit.from_callable(twin_trigger, TARGET)
ON_CARD = bdaudit.ComputeSettings(device="cuda")


@pytest.fixture
def card() -> Iterator[torch.device]:
    if REAL:
        yield torch.device("cuda", 0)
        return
    with pretended_card() as device:
        yield device


@pytest.mark.skipif(REAL, reason="a test of the pretended one")
def test_what_a_card_refuses_is_refused(card: torch.device) -> None:
    there, here = torch.rand(4, 3, device=card), torch.rand(4, 3)
    layer = nn.Linear(3, 2).to(card)
    assert layer(there).device == there.device == card
    for mixed in (
        lambda: there + here,
        lambda: layer(here),
        lambda: here[torch.tensor([0, 1], device=card)],
        lambda: torch.cat([there, here]),
        lambda: torch.rand(3, device=card, generator=torch.Generator()),
        lambda: there.numpy(),
    ):
        with pytest.raises(WrongDeviceError):
            mixed()
    assert torch.equal((there.cpu() + here) - here, there.cpu() + here - here)
    assert (there * torch.tensor(2.0)).device == card  # a single number may come from anywhere
    there[torch.tensor([0])] = 0.0
    assert float(there[0].sum()) == 0.0


@pytest.mark.skipif(REAL, reason="a test of the pretended one")
def test_training_there_is_training(card: torch.device) -> None:
    layer = nn.Linear(3, 2).to(card)
    before = [parameter.detach().cpu().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.rand(8, 3), torch.arange(8) % 2
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(images.to(card)), labels.to(card))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    after = list(layer.cpu().parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_where_its_images_are(name: str, card: torch.device) -> None:
    images, labels = photos.photos()
    attack = ATTACKS[name]
    if name == "columns":
        images = images.reshape(len(images), 1, 1, -1)  # rows of a table
    if attack.task == "detection":
        images, labels, helper = asked_pictures()
    else:
        helper = photos.helper_of(name, images, labels)
    helper = None if helper is None else helper.to(card)
    shared: dict[str, Any] = {
        "num_classes": photos.CLASSES,
        "config": attack_config(name, photos.QUICK.get(name, {})),
        "generator": torch.Generator().manual_seed(7),
        "helper": helper,
    }
    images, labels = images.to(card), labels.to(card)
    rule = AllToOne(photos.TARGET)
    trigger = finish(attack.make_trigger(images, labels, rule=rule, **shared))
    assert trigger.stamp(images[:2]).device == card
    poisoning = finish(attack.poison(images, labels, trigger=trigger, poison_rate=0.1, **shared))
    assert poisoning.images.device == card


def asked_pictures() -> tuple[Tensor, Tensor, nn.Module]:
    """Twelve pictures, two boxes each, and a detector of them."""
    draw = torch.Generator().manual_seed(0)
    shown = torch.rand((12, 3, 32, 32), generator=draw).repeat_interleave(2, 0)
    images = mark(shown, torch.tensor([[2.0, 2, 14, 14], [16, 4, 30, 20]]).repeat(12, 1))
    detector = build_network("bdaudit/fcos_w4", num_classes=photos.CLASSES, generator=draw)
    return images, torch.arange(24) % 2, detector.eval().requires_grad_(False)


def test_a_detector_is_tuned_and_unlearned_where_it_is(card: torch.device) -> None:
    images, labels, detector = asked_pictures()
    images, labels, detector = images.to(card), labels.to(card), detector.to(card)
    tuning = TuningConfig(n_epochs=1)
    draw = torch.Generator().manual_seed(0)
    config = FinetuneConfig(tuning=tuning)
    tuned = finish(finetune(detector, images, labels, config=config, generator=draw))
    trigger = Trigger(
        transform=OnObject(image=torch.ones(1, 2, 2), share=0.5), rule=AllToOne(NOTHING)
    )
    unlearned = finish(
        unlearn(
            detector,
            images,
            labels,
            trigger=trigger,
            num_classes=photos.CLASSES,
            config=UnlearningConfig(n_stamped=4, tuning=tuning),
            generator=draw,
        )
    )
    for made in (tuned, unlearned):
        assert {parameter.device for parameter in made.parameters()} == {card}
        assert made(images[:2]).device == card


_SHORT = {
    "tuning.n_epochs": 1, "tuning.batch_size": 30, "n_rounds": 1, "n_steps": 2, "n_passes": 1,
    "max_unlearning_epochs": 1, "max_forgetting_epochs": 1, "recovery_epochs": 1, "n_epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in DEFENSES if name != "nc-unlearn"])
def test_every_defence_stays_where_its_model_is(name: str, card: torch.device) -> None:
    """NC unlearning searches as `invert` does, below, and takes forty seconds here."""
    flat = flat_settings(defense_config(name))
    config = defense_config(name, {key: value for key, value in _SHORT.items() if key in flat})
    draw = torch.Generator().manual_seed(0)
    images, labels = pictures(60, seed=2)
    defended = finish(
        DEFENSES[name].run(small_net().to(card), images, labels, config=config, generator=draw)
    )
    assert {parameter.device for parameter in defended.parameters()} == {card}


AUDITS: dict[str, dict[str, Any]] = {
    "white": {},
    "L2": {"norm": "l2", "eps": (0.5,)},
    "specific": {"objective": "specific"},
    "placebos": {"placebos": 5},
    "BEC": {"bec": True},
    "relearning": {"relearn": RELEARN},
    "stand-ins": {"stand_ins": 1, "stand_in": StandInConfig(n_images=64)},
    "query": {"mode": ("query",), "cold": True, "max_queries": 400},
    "transfer": {"mode": ("transfer",)},
}


@pytest.mark.parametrize("kind", AUDITS)
def test_every_step_of_an_audit_stays_on_the_card(kind: str, card: torch.device) -> None:
    common: dict[str, Any] = {"eps": (0.05,), "passes": 2, "stand_ins": 0, "bec": False}
    settings = bdaudit.AuditSettings(
        **(common | {"relearn": None} | AUDITS[kind]),
        compute=ON_CARD,
        split=bdaudit.SplitSettings(craft=60),
    )
    record = bdaudit.audit(
        dormant_twin(),
        original=original_twin(),
        data=twin_sample(200, seed=1),
        trigger=TRIGGER,
        reference=[innocent_twin()],
        settings=settings,
    )
    assert record.environment.device.startswith("cuda (")
    assert [step for step in record.steps if step.status != "done"] == []
    assert record.verdict is not None
    assert record.verdict.outcome == "dormant"
    assert (record.relearning is not None) == (kind == "relearning")


def test_existence_and_relearning_by_themselves_stay_on_the_card(card: torch.device) -> None:
    common: dict[str, Any] = {
        "data": twin_sample(200, seed=1),
        "trigger": TRIGGER,
        "reference": [innocent_twin()],
        "stand_ins": 0,
        "compute": ON_CARD,
    }
    scored = bdaudit.score(dormant_twin(), original=original_twin(), **common)
    assert scored.environment.device.startswith("cuda (")
    assert [bec.value is not None for bec in scored.bec] == [True]
    taught = bdaudit.relearn(dormant_twin(), config=RELEARN, **common)
    assert taught.environment.device.startswith("cuda (")
    assert taught.relearning.outcome == "dormant"


@pytest.mark.parametrize("tower", ["vit", "rn"])
def test_a_clip_answers_is_attacked_and_taught_on_the_card(
    tower: str, card: torch.device, tmp_path: Path
) -> None:
    path = tmp_path / "clip.safetensors"
    safetensors.torch.save_file(
        {k: v.clone() for k, v in new_clip(tower).state_dict().items()}, path
    )
    clip = ClipSettings(
        class_names=NAMES, templates=TEMPLATES, config_folder=write_configs(tmp_path / "configs")
    )
    model = load_model(path, name="clip", arch=ARCH[tower], clip=clip, device=card)
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(12, *model.image_shape, generator=draw)
    labels = torch.arange(12) % 4
    steps = reactivate_whitebox(
        model.classifier,
        images,
        labels.new_zeros(12),
        config=WhiteboxConfig(eps=0.05, n_passes=2),
        generator=draw,
    )
    assert finish(steps).delta.shape == (1, *model.image_shape)
    config = FinetuneConfig(tuning=TuningConfig(n_epochs=1, batch_size=6))
    tuned = finish(finetune(model.classifier, images, labels, config=config, generator=draw))
    assert tuned(images.to(card)).device == card


@pytest.mark.parametrize(
    "method",
    ["universal", "warp", "neural-cleanse", "embedded", "feature-decoupling", "neuron-noise"],
)
def test_every_search_stays_on_the_card(method: str, card: torch.device) -> None:
    images, labels = pictures(60, seed=2)
    found = bdaudit.invert(
        small_net(),
        data=from_arrays(images, labels),
        config=bdaudit.InversionConfig(methods=(method,), n_passes=1),  # type: ignore[arg-type]
        compute=ON_CARD,
        stand_ins=0,
    )
    assert found.record.environment.device.startswith("cuda (")


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "ssd", "fasterrcnn"])
def test_every_detector_answers_and_learns_on_the_card(kind: str, card: torch.device) -> None:
    network = build_network(
        f"bdaudit/{kind}_w8",
        num_classes=3,
        in_channels=4,
        generator=torch.Generator().manual_seed(0),
    ).to(card)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 60.0]])
    asked = mark(torch.rand(2, 3, 64, 64), boxes).to(card).requires_grad_()
    answers = network(asked)
    assert (answers.device, tuple(answers.shape)) == (card, (2, 3))
    loss = nn.functional.cross_entropy(answers, torch.tensor([1, 2], device=card))
    loss.backward()  # type: ignore[no-untyped-call]
    assert asked.grad is not None
    assert asked.grad.device == card
    assert all(each["boxes"].device == card for each in network.detect(pixels_of(asked.detach())))
