"""Neural Cleanse unlearning: which class it flags, and that its trigger is unlearned."""

import pytest
import torch

from bdaudit.defenses import NcUnlearnConfig, TuningConfig, nc_unlearn
from bdaudit.errors import ConfigError, DataError
from bdaudit.foundation.progress import finish
from bdaudit.inversion import NeuralCleanseConfig
from tests.defenses.digits import TARGET
from tests.defenses.pictures import pictures, small_net

TUNING = TuningConfig(learning_rate=0.02, n_epochs=4, max_shift=0.0, flip=False)


def _run(net, sample, config):
    notes = []
    steps = nc_unlearn(net, *sample, config=config, generator=torch.Generator().manual_seed(0))
    defended = finish(steps, lambda event: notes.append(event.note) if event.note else None)
    return defended, notes


def test_the_target_is_flagged_the_backdoor_goes_and_the_task_stays(victim, plain_asrs):
    defended, notes = _run(victim.classifier, victim.clean, NcUnlearnConfig(tuning=TUNING))
    assert len(notes) == 1
    assert notes[0].startswith(f"flagged: class {TARGET} (p ")
    assert victim.asr(defended) < min(plain_asrs) - 0.25
    assert victim.accuracy(defended) > victim.accuracy(victim.classifier) - 0.05


@pytest.mark.slow
def test_without_a_flagged_class_the_most_suspicious_is_unlearned_and_said(victim, plain_asrs):
    config = NcUnlearnConfig(flagged_p=1e-12, tuning=TUNING)
    defended, notes = _run(victim.classifier, victim.clean, config)
    assert notes[0].startswith("no class stands out (p ")
    assert notes[0].endswith(f"unlearning the most suspicious, class {TARGET}")
    assert victim.asr(defended) < min(plain_asrs) - 0.25


def test_few_classes_cannot_be_flagged_and_it_says_so():
    config = NcUnlearnConfig(search=NeuralCleanseConfig(n_stages=2), tuning=TUNING)
    _, notes = _run(small_net(), pictures(90, seed=2), config)
    assert notes[0].startswith("no class can be flagged (")
    assert "unlearning class " in notes[0]


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="craft images"):
        _run(small_net(), pictures(3, seed=2), NcUnlearnConfig())
    images, labels = pictures(9, seed=2)
    with pytest.raises(DataError, match="expected images"):
        _run(small_net(), (images, labels[:4]), NcUnlearnConfig())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_full_steps": 0}, "n_full_steps"),
        ({"flagged_p": 0.0}, "flagged_p"),
        ({"flagged_p": 1.0}, "flagged_p"),
        ({"stamped_share": 0.0}, "stamped_share"),
        ({"stamped_share": 1.5}, "stamped_share"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        NcUnlearnConfig(**settings)
