"""ETF fine-tuning: the frame is one, it stays, and the network learns to answer by it."""

import pytest
import torch
from torch import nn

from bdaudit.defenses.etf import EtfConfig, simplex_frame, tune_behind_simplex
from bdaudit.defenses.layers import classifier_head
from bdaudit.errors import ModelError
from bdaudit.foundation.progress import finish
from tests.defenses.digits import NUM_CLASSES, TUNING
from tests.defenses.pictures import pictures


@pytest.mark.parametrize(("num_classes", "n_features"), [(2, 1), (3, 2), (4, 9), (10, 32)])
def test_all_classes_are_equally_far_apart(num_classes, n_features):
    draw = torch.Generator().manual_seed(0)
    frame = simplex_frame(num_classes, n_features, draw)
    cosines = torch.full((num_classes, num_classes), -1 / (num_classes - 1)).fill_diagonal_(1.0)
    assert frame.shape == (num_classes, n_features)
    assert torch.allclose(frame @ frame.T, cosines, atol=1e-5)
    other = simplex_frame(num_classes, n_features, torch.Generator().manual_seed(3))
    assert n_features == 1 or not torch.allclose(frame, other, atol=0.01)


@pytest.mark.slow
def test_the_head_stays_the_frame_and_the_task_is_learned_behind_it(victim):
    tuned = victim.defend(tune_behind_simplex, EtfConfig(tuning=TUNING))
    old, new = classifier_head(victim.classifier), classifier_head(tuned)
    assert float(new.weight.norm()) == pytest.approx(float(old.weight.norm()), rel=1e-4)
    cosines = nn.functional.normalize(new.weight, dim=1)
    cosines = cosines @ cosines.T
    off = cosines[~torch.eye(NUM_CLASSES, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, -1 / (NUM_CLASSES - 1)), atol=1e-4)
    assert not bool(new.bias.any())
    assert victim.accuracy(tuned) > 0.85


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 3)), r"expected 2 features"),
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), "no linear layer"),
    ],
)
def test_a_head_that_cannot_be_a_frame_is_refused(net, said):
    draw = torch.Generator().manual_seed(0)
    with pytest.raises(ModelError, match=said):
        finish(tune_behind_simplex(net, *pictures(9, 0), config=EtfConfig(), generator=draw))
