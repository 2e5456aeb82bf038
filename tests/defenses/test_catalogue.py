"""The catalogue: every defence by name, its settings from plain data and back."""

import dataclasses
import json
import tomllib

import pytest
import torch

from bdaudit.defenses import FinetuneConfig, FtSamConfig, TuningConfig
from bdaudit.defenses.catalogue import DEFENSES, defense_config, defense_of, flat_settings
from bdaudit.errors import ConfigError
from bdaudit.foundation.progress import finish
from tests.defenses.pictures import pictures, small_net


def test_names_and_titles_are_unique_and_every_default_is_found_again():
    assert all(name == defense.name for name, defense in DEFENSES.items())
    assert len({defense.title for defense in DEFENSES.values()}) == len(DEFENSES)
    assert len({defense.config_type for defense in DEFENSES.values()}) == len(DEFENSES)
    for name, defense in DEFENSES.items():
        config = defense_config(name)
        assert config == defense.config_type()
        assert defense_of(config) is defense


@pytest.mark.parametrize("name", DEFENSES)
def test_flat_settings_survive_json_and_make_the_same_config(name):
    config = defense_config(name)
    flat = json.loads(json.dumps(flat_settings(config)))
    assert flat
    assert defense_config(name, flat) == config
    assert all(not isinstance(value, dict) for value in flat.values())


def test_settings_from_a_toml_table():
    text = "rho = 1\n[tuning]\nn_epochs = 3\nflip = false\n"  # a whole number serves as a float
    config = defense_config("ft-sam", tomllib.loads(text))
    assert config == FtSamConfig(rho=1.0, tuning=TuningConfig(n_epochs=3, flip=False))
    assert isinstance(config.rho, float)
    mixed = {"tuning": {"n_epochs": 3}, "tuning.flip": False, "rho": 1}
    assert defense_config("ft-sam", mixed) == config


def test_a_nested_setting_leaves_the_others_as_the_defense_has_them():
    default = defense_config("nad")
    assert default.tuning.learning_rate != TuningConfig().learning_rate  # else this says nothing
    config = defense_config("nad", {"tuning": {"flip": False}})
    assert config == dataclasses.replace(
        default, tuning=dataclasses.replace(default.tuning, flip=False)
    )


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fine-tune", {}, r"unknown key 'fine-tune'; did you mean 'finetune'"),
        ("ft-sam", {"rhow": 1.0}, r"defense ft-sam: unknown key 'rhow'; did you mean 'rho'"),
        ("ft-sam", {"rho": "big"}, r"defense ft-sam: rho: .*number.* got 'big'"),
        ("ft-sam", {"rho": True}, r"rho: .*number"),
        ("ft-sam", {"rho": -1.0}, r"defense ft-sam: rho: expected a finite number"),
        ("ft-sam", {"tuning": 3}, r"tuning: expected a table, got 3"),
        ("ft-sam", {"tuning": 3, "tuning.n_epochs": 2}, r"tuning: both a value and a table"),
        ("ft-sam", {"tuning": {"epochs": 3}}, r"tuning: unknown key 'epochs'.*'n_epochs'"),
        ("ft-sam", {"tuning": {"n_epochs": 2.5}}, r"tuning: n_epochs: .*integer"),
        ("ft-sam", {"tuning.n_epochs": 0}, r"defense ft-sam: tuning: n_epochs: expected 1 or more"),
    ],
)
def test_wrong_settings_are_named(name, settings, said):
    with pytest.raises(ConfigError, match=said):
        defense_config(name, settings)


def test_what_is_no_defense_is_refused():
    with pytest.raises(ConfigError, match="settings of a defence, got TuningConfig"):
        defense_of(TuningConfig())


def test_a_defense_is_run_by_name():
    settings = {"tuning": {"n_epochs": 1, "batch_size": 30}}
    config = defense_config("finetune", settings)
    assert isinstance(config, FinetuneConfig)
    steps = DEFENSES["finetune"].run(
        small_net(), *pictures(60, seed=2), config=config, generator=torch.Generator()
    )
    assert not finish(steps).training
    assert dataclasses.is_dataclass(DEFENSES["finetune"].config_type)
