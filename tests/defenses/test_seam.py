"""SEAM: random labels are never the true ones, all is forgotten at once, the task comes back."""

from statistics import mean

import pytest
import torch
from torch import nn

from bdaudit.defenses.seam import SeamConfig, forget_and_recover, other_labels
from bdaudit.errors import ConfigError, NumericsError
from bdaudit.foundation.progress import finish
from tests.defenses.digits import SEEDS, TUNING
from tests.defenses.pictures import pictures


def test_random_labels_are_others_and_all_others():
    labels = torch.arange(3).repeat(200)
    drawn = other_labels(labels, 3, torch.Generator().manual_seed(0))
    for label in range(3):
        seen = drawn[labels == label].unique().tolist()
        assert seen == [other for other in range(3) if other != label]


@pytest.mark.slow
def test_the_task_comes_back_and_the_trigger_less_than_after_fine_tuning(victim, plain_asrs):
    asrs = []
    for seed in SEEDS:
        recovered = victim.defend(forget_and_recover, SeamConfig(tuning=TUNING), seed=seed)
        assert victim.accuracy(recovered) > 0.85
        asrs.append(victim.asr(recovered))
    assert mean(asrs) < mean(plain_asrs) - 0.1


def test_a_rate_that_diverges_is_an_error_that_names_it():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))
    config = SeamConfig(forgetting_share=1.0, forgetting_rate=1e30)
    draw = torch.Generator().manual_seed(0)
    with pytest.raises(NumericsError, match=r"lower forgetting_rate \(1e\+30\)"):
        finish(forget_and_recover(net, *pictures(30, 0), config=config, generator=draw))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"forgetting_share": 0.0}, "forgetting_share"),
        ({"forgetting_rate": float("nan")}, "forgetting_rate"),
        ({"forgetting_batch_size": 1}, "forgetting_batch_size"),
        ({"max_forgetting_epochs": 0}, "max_forgetting_epochs"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        SeamConfig(**settings)
