"""Every attack by name: settings from plain data, triggers and poisoned sets that follow a seed."""

import json

import pytest
import torch

from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.plain_settings import flat_settings
from bdaudit.foundation.progress import finish
from bdaudit.triggers import AllToAll, AllToOne, read_trigger, write_trigger
from bdaudit.zoo.attacks import ATTACKS, attack_config
from tests.zoo.attacks.photos import CLASSES, ON_IMAGES, TARGET, N, photos, run


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_survive_json(name):
    assert ATTACKS[name].name == name
    config = attack_config(name)
    assert config == ATTACKS[name].config_type()
    assert attack_config(name, json.loads(json.dumps(flat_settings(config)))) == config


def test_wrong_names_and_settings_are_named():
    with pytest.raises(ConfigError, match="attack: unknown key 'badnet'; did you mean 'badnets'"):
        attack_config("badnet")
    with pytest.raises(ConfigError, match="attack blended: unknown key 'alfa'"):
        attack_config("blended", {"alfa": 0.1})
    with pytest.raises(ConfigError, match="attack blended: alpha: expected a share"):
        attack_config("blended", {"alpha": 0})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ON_IMAGES)
def test_an_attack_follows_its_seed_and_touches_what_it_says(name, channels):
    images, labels, trigger, poisoning = run(name, channels=channels)
    *_, other_trigger, other = run(name, channels=channels)
    assert trigger.sha256 == other_trigger.sha256
    assert digest_tensors({"x": poisoning.images}) == digest_tensors({"x": other.images})
    assert torch.equal(poisoning.poisoned, other.poisoned)

    assert poisoning.images.shape == images.shape
    assert poisoning.images.dtype == torch.float32
    assert 0 <= poisoning.images.min() <= poisoning.images.max() <= 1
    touched = torch.zeros(N, dtype=torch.bool)
    touched[poisoning.poisoned] = True
    assert not touched[poisoning.cover].any()
    touched[poisoning.cover] = True
    assert torch.equal(poisoning.images[~touched], images[~touched])
    assert not torch.equal(poisoning.images[poisoning.poisoned], images[poisoning.poisoned])
    assert (poisoning.labels[poisoning.poisoned] == TARGET).all()
    untaught = torch.ones(N, dtype=torch.bool)
    untaught[poisoning.poisoned] = False
    assert torch.equal(poisoning.labels[untaught], labels[untaught])
    assert len(poisoning.poisoned) == round(0.1 * N)
    assert poisoning.poison_rate == pytest.approx(0.1)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_trigger_made_under_bfloat16_survives_its_file(name, tmp_path):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        images, _, trigger, _ = run(name)
    write_trigger(tmp_path / "trigger.toml", trigger)
    again = read_trigger(tmp_path / "trigger.toml")
    assert again.sha256 == trigger.sha256
    assert torch.equal(again.stamp(images[:9]), trigger.stamp(images[:9]))


@pytest.mark.parametrize("name", ON_IMAGES)
def test_all_to_all_or_a_clear_refusal(name):
    if ATTACKS[name].one_target:
        with pytest.raises(ConfigError, match="one target class, got the rule 'all-to-all'"):
            run(name, rule=AllToAll())
        return
    _, labels, trigger, poisoning = run(name, rule=AllToAll())
    chosen = poisoning.poisoned
    assert torch.equal(poisoning.labels[chosen], (labels[chosen] + 1) % CLASSES)
    assert trigger.target_label is None


@pytest.mark.parametrize("name", [n for n, attack in ATTACKS.items() if attack.needs_helper])
def test_a_missing_helper_is_named(name):
    images, labels = photos()
    with pytest.raises(ConfigError, match=f"attack {name}: expected a clean classifier"):
        finish(
            ATTACKS[name].make_trigger(
                images,
                labels,
                num_classes=CLASSES,
                rule=AllToOne(TARGET),
                config=attack_config(name),
                generator=torch.Generator(),
            )
        )


def test_rates_out_of_range_and_rates_that_leave_nothing():
    with pytest.raises(ConfigError, match="poison_rate"):
        run("badnets", poison_rate=0)
    with pytest.raises(DataError, match="leaves none"):
        run("badnets", poison_rate=0.001)


def test_a_rate_above_what_counts_is_reached_as_far_as_it_goes():
    _, labels, _, poisoning = run("badnets", poison_rate=1.0)
    assert torch.equal(poisoning.poisoned, (labels != TARGET).nonzero()[:, 0])
    assert poisoning.poison_rate == 0.75
