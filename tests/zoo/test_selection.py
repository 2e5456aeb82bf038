"""Images that training forgets are kept for poisoning, and the family file asks for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bdaudit.engines import LocalEngine
from bdaudit.errors import ConfigError, ManifestError
from bdaudit.foundation.progress import Steps, finish
from bdaudit.models import Classifier
from bdaudit.records.families import read_family
from bdaudit.triggers import AllToOne
from bdaudit.zoo.attacks import ATTACKS, Poisoning, attack_config
from bdaudit.zoo.building import build_family, prepare_build
from bdaudit.zoo.costs import estimate_costs
from bdaudit.zoo.manifest import read_manifest
from bdaudit.zoo.selection import (
    FusConfig,
    count_forgetting,
    forgetting_events,
    most_first,
    select_images,
)
from bdaudit.zoo.training import TrainingConfig
from tests.zoo.attacks.photos import CLASSES, ON_IMAGES, QUICK, TARGET, helper_of, photos
from tests.zoo.conftest import FAMILY

N_PREFERRED = 20
TRAINING = TrainingConfig(epochs=2, learning_rate=0.05, batch_size=60, max_shift=0, flip=False)


def test_an_event_is_an_answer_that_was_right_and_is_wrong_an_epoch_later() -> None:
    answers = ["0000", "0110", "1011", "0010", "1111"]  # after each of five epochs, four images
    history = torch.tensor([[letter == "1" for letter in row] for row in answers])
    assert forgetting_events(history).tolist() == [1, 1, 0, 1]
    assert forgetting_events(history[:1]).tolist() == [0, 0, 0, 0]


def test_the_most_forgotten_come_first_and_chance_settles_ties() -> None:
    events = torch.tensor([0, 3, 1, 3, 0, 0])
    orders = {
        tuple(most_first(events, torch.Generator().manual_seed(seed)).tolist())
        for seed in range(20)
    }
    assert len(orders) > 5
    for order in orders:
        assert set(order[:2]) == {1, 3}
        assert order[2] == 2
        assert set(order[3:]) == {0, 4, 5}


class Poisoner:
    """BadNets on small pictures, which keeps what it was asked and what it gave."""

    def __init__(self, seed: int = 0) -> None:
        self.images, self.labels = photos()
        self.generator = torch.Generator().manual_seed(seed)
        self.shared: dict[str, Any] = {
            "num_classes": CLASSES,
            "config": attack_config("badnets"),
            "generator": self.generator,
        }
        self.trigger = finish(
            ATTACKS["badnets"].make_trigger(
                self.images, self.labels, rule=AllToOne(TARGET), **self.shared
            )
        )
        self.asked: list[Tensor | None] = []
        self.made: list[Poisoning] = []

    def __call__(self, preferred: Tensor | None) -> Steps[Poisoning]:
        self.asked.append(preferred)
        made = yield from ATTACKS["badnets"].poison(
            self.images,
            self.labels,
            trigger=self.trigger,
            poison_rate=0.1,
            preferred=preferred,
            **self.shared,
        )
        self.made.append(made)
        return made

    def network(self) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.generator)))
            layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, CLASSES))
        return Classifier(layers)


def test_half_of_the_images_is_kept_from_round_to_round() -> None:
    runs = []
    for _ in range(2):
        poison = Poisoner()
        config = FusConfig(n_rounds=3, n_epochs=3)
        kept = finish(
            select_images(
                poison,
                poison.network,
                config=config,
                training=TRAINING,
                generator=poison.generator,
            )
        )
        assert poison.asked[0] is None
        for earlier, asked in zip(poison.made, [*poison.asked[1:], kept], strict=True):
            assert asked is not None
            assert len(set(asked.tolist())) == len(asked) == 12  # of 24, a tenth of 240
            assert set(asked.tolist()) <= set(earlier.poisoned.tolist())
        for asked, made in zip(poison.asked[1:], poison.made[1:], strict=True):
            assert asked is not None
            assert set(asked.tolist()) < set(made.poisoned.tolist())
            assert len(made.poisoned) == 24
        runs.append(kept.tolist())
    assert runs[0] == runs[1]


def test_counting_leaves_the_poisoned_set_and_returns_a_count_an_image() -> None:
    poison = Poisoner()
    poisoning = finish(poison(None))
    before = poisoning.images.clone()
    network = poison.network()
    counts = finish(
        count_forgetting(
            network,
            poisoning,
            training=replace(TRAINING, epochs=6),
            generator=poison.generator,
            title="counting",
        )
    )
    assert counts.shape == poisoning.poisoned.shape
    assert 0 <= int(counts.min()) <= int(counts.max()) <= 3  # of five steps, never two in a row
    assert torch.equal(poisoning.images, before)
    assert not network.training


@pytest.mark.parametrize("name", ON_IMAGES)
def test_every_attack_poisons_preferred_images_first(name: str) -> None:
    images, labels = photos()
    attack = ATTACKS[name]
    shared: dict[str, Any] = {
        "num_classes": CLASSES,
        "config": attack_config(name, QUICK.get(name, {})),
        "generator": torch.Generator().manual_seed(0),
        "helper": helper_of(name, images, labels),
    }
    trigger = finish(attack.make_trigger(images, labels, rule=AllToOne(TARGET), **shared))
    preferred = torch.arange(N_PREFERRED)
    poisoning = finish(
        attack.poison(
            images, labels, trigger=trigger, poison_rate=0.1, preferred=preferred, **shared
        )
    )
    chosen = set(poisoning.poisoned.tolist())
    of_target = {place for place in range(N_PREFERRED) if int(labels[place]) == TARGET}
    others = set(range(N_PREFERRED)) - of_target
    clean_label = torch.equal(poisoning.labels, labels)
    assert chosen & set(range(N_PREFERRED)) == (of_target if clean_label else others)
    assert len(chosen) == 24


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"n_rounds": 0}, "n_rounds"), ({"n_epochs": 1}, "n_epochs"), ({"kept": 0.0}, "kept")],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FusConfig(**settings)


def with_selection(text: str = "") -> str:
    quick = FAMILY.replace("images = 500\nepochs = 4", "images = 60\nepochs = 1")
    assert quick != FAMILY
    more = '[[attack]]\ntype = "blended"\nname = "chosen"\nselection = "fus"\n\n'
    return quick.replace("[[defense]]", f"{more}{text}\n[[defense]]", 1)


def test_a_family_file_asks_for_it(small_data: Path, tmp_path: Path) -> None:
    shutil.copy(small_data / "images.npz", tmp_path)
    path = tmp_path / "family.toml"
    path.write_text(with_selection("[fus]\nn_rounds = 2\nn_epochs = 2\n"))
    build = prepare_build(read_manifest(path), tmp_path / "out", only=["chosen-*"])
    plain, chosen = (build.shop.recipes[f"{name}-r10-s1"] for name in ("badnets", "chosen"))
    assert not any(key.startswith("fus.") for key in plain.settings)
    assert chosen.settings["fus.n_rounds"] == 2
    costs = {estimate.recipe.name: estimate.seconds for estimate in estimate_costs(build)}
    assert costs["chosen-r10-s1"] > 0
    built = finish(build_family(build, LocalEngine()), lambda event: None)
    assert not built.failed
    (member,) = (m for m in read_family(tmp_path / "out").members if m.name == "chosen-r10-s1")
    assert member.settings["fus.kept"] == 0.5
    assert member.poison_rate == pytest.approx(0.1)


def test_a_wrong_selection_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "family.toml"
    path.write_text(with_selection().replace('"fus"', '"fuss"'))
    with pytest.raises(ManifestError, match=r"attack\[2\]\.selection.*'fuss'"):
        read_manifest(path)
    path.write_text(with_selection("[fus]\nrounds = 3\n"))
    with pytest.raises(ManifestError, match="fus: unknown key 'rounds'"):
        read_manifest(path)
