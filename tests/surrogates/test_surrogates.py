"""Surrogates: made as asked, seeded, and not made twice."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bdaudit.data import from_arrays
from bdaudit.defenses import (
    FinePruningConfig,
    FinetuneConfig,
    FstConfig,
    FtSamConfig,
    TuningConfig,
    finetune,
)
from bdaudit.errors import ConfigError
from bdaudit.foundation.digests import digest_tensors
from bdaudit.foundation.progress import finish
from bdaudit.models import Classifier, wrap_module
from bdaudit.relatives.surrogates import SurrogateConfig, make_surrogates
from bdaudit.scoring import predict_logits
from tests.defenses.pictures import pictures, small_net

TUNING = TuningConfig(learning_rate=0.05, n_epochs=2, batch_size=30)
FAST = SurrogateConfig(
    defenses=(
        FinetuneConfig(tuning=TUNING),
        FtSamConfig(tuning=TUNING),
        FinePruningConfig(tuning=TUNING),
        FstConfig(tuning=TUNING),
    )
)
ONE = SurrogateConfig(defenses=(FinetuneConfig(tuning=TUNING),))


@pytest.fixture(scope="module")
def original():
    return wrap_module(small_net(), name="original", image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def craft():
    return from_arrays(*pictures(60, seed=11))


def _make(original, craft, *, config=ONE, seed=0, cache_dir=None, listener=None):
    generator = torch.Generator().manual_seed(seed)
    steps = make_surrogates(
        original, craft, config=config, generator=generator, cache_dir=cache_dir
    )
    return finish(steps, listener)


def _digests(models):
    return [model.weights_sha256 for model in models]


def test_one_surrogate_for_each_defense(original, craft):
    before = digest_tensors(original.network.state_dict())
    made = _make(original, craft, config=FAST)
    assert [model.name for model in made] == [
        "surrogate 1 (fine-tuning)",
        "surrogate 2 (FT-SAM)",
        "surrogate 3 (fine-pruning)",
        "surrogate 4 (FST)",
    ]
    assert len({*_digests(made), original.weights_sha256}) == 5
    assert digest_tensors(original.network.state_dict()) == before
    for model in made:
        assert not model.classifier.training
        assert not any(parameter.requires_grad for parameter in model.classifier.parameters())
        assert model.weights_sha256 == digest_tensors(model.network.state_dict())


def test_a_surrogate_is_what_its_defense_returns(original, craft):
    (made,) = _make(original, craft, seed=5)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    expected = finish(
        finetune(
            original.classifier,
            craft.images,
            craft.labels,
            config=ONE.defenses[0],
            generator=torch.Generator().manual_seed(seed),
        )
    )
    assert made.weights_sha256 == digest_tensors(expected.network.state_dict())


def test_seed_decides(original, craft):
    assert _digests(_make(original, craft)) == _digests(_make(original, craft))
    assert _digests(_make(original, craft)) != _digests(_make(original, craft, seed=1))


def test_defaults_make_four_kinds():
    defenses = SurrogateConfig().defenses_of(small_net())
    kinds = [type(defense) for defense in defenses]
    assert kinds == [FinetuneConfig, FtSamConfig, FinePruningConfig, FstConfig]
    assert all(defense.tuning == TuningConfig() for defense in defenses)
    with pytest.raises(ConfigError, match="one defence or more"):
        SurrogateConfig(defenses=())


class _Attention(nn.Module):
    """By its name alone, as timm's."""


@pytest.mark.parametrize("part", [nn.MultiheadAttention(4, 2), _Attention()])
def test_a_network_built_of_attention_is_tuned_more_gently(part):
    (first, *others) = SurrogateConfig().defenses_of(nn.Sequential(nn.Linear(4, 4), part))
    assert 0 < first.tuning.learning_rate < TuningConfig().learning_rate
    assert all(defense.tuning == first.tuning for defense in others)


def test_given_defences_are_tuned_as_they_say():
    attention = nn.Sequential(nn.MultiheadAttention(4, 2))
    assert ONE.defenses_of(attention) == (FinetuneConfig(tuning=TUNING),)


class _Counting(nn.Module):
    """Counts the forward passes it is trained with, in all of its copies."""

    n_training_passes = 0

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        _Counting.n_training_passes += self.training
        return self.net(images)


def test_second_run_trains_nothing_and_gives_the_same(original, craft, tmp_path):
    counted = wrap_module(_Counting(small_net()), name="original", image_shape=(1, 8, 8))
    _Counting.n_training_passes = 0
    first = _make(counted, craft, config=FAST, cache_dir=tmp_path)
    trained = _Counting.n_training_passes
    second = _make(counted, craft, config=FAST, cache_dir=tmp_path)
    assert trained > 0
    assert _Counting.n_training_passes == trained
    assert _digests(first) == _digests(second)
    images, _ = pictures(30, seed=13)
    for a, b in zip(first, second, strict=True):
        answers = [predict_logits(model.classifier, images, batch_size=30) for model in (a, b)]
        assert torch.equal(*answers)
        assert not b.classifier.training


def test_the_cache_changes_no_later_draw(original, craft, tmp_path):
    after = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        finish(
            make_surrogates(original, craft, config=ONE, generator=generator, cache_dir=tmp_path)
        )
        after.append(torch.rand((), generator=generator))
    assert after[0] == after[1]


def _other_normalisation(original):
    return replace(original, classifier=Classifier(original.network, mean=(0.1,), std=(0.5,)))


def _other_weights(original):
    net = copy.deepcopy(original.network)
    net[8].bias.add_(0.01)
    return wrap_module(net, name="original", image_shape=(1, 8, 8))


@pytest.mark.parametrize(
    "change", ["seed", "images", "labels", "config", "normalisation", "weights"]
)
def test_whatever_determines_a_surrogate_is_in_its_key(original, craft, tmp_path, change):
    _make(original, craft, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    images, labels = craft.images.clone(), craft.labels.clone()
    if change == "images":
        images[0, 0, 0, 0] = 1 - images[0, 0, 0, 0]
    if change == "labels":
        labels[0] = (labels[0] + 1) % 3
    changed = {
        "config": SurrogateConfig(defenses=(FinetuneConfig(tuning=replace(TUNING, n_epochs=1)),)),
    }
    model = {"normalisation": _other_normalisation, "weights": _other_weights}.get(change)
    _make(
        original if model is None else model(original),
        from_arrays(images, labels),
        config=changed.get(change, ONE),
        seed=int(change == "seed"),
        cache_dir=tmp_path,
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_file_is_made_again(original, craft, tmp_path, damage):
    first = _make(original, craft, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-40] if damage is None else damage)
    assert _digests(_make(original, craft, cache_dir=tmp_path)) == _digests(first)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(original, craft, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ConfigError, match=r"file/cache: surrogates cannot be kept"):
        _make(original, craft, cache_dir=blocked / "cache")


def test_progress_runs_to_the_number_of_surrogates(original, craft, tmp_path):
    for _ in range(2):
        heard = []
        _make(original, craft, config=FAST, cache_dir=tmp_path, listener=heard.append)
        assert [event.done for event in heard] == sorted(event.done for event in heard)
        assert heard[-1].done == heard[-1].total == 4
        assert "surrogate 4 of 4, FST" in heard[-1].step
