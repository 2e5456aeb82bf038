"""Stand-ins learn the task from a teacher's clean answers, and nothing else from it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bdaudit.data import from_arrays
from bdaudit.errors import ConfigError, ModelError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.models import wrap_module
from bdaudit.relatives.standins import StandInConfig, make_stand_ins
from bdaudit.scoring import predict, predict_logits
from tests.defenses.pictures import pictures, small_net

FAST = StandInConfig(n_images=3_000, batch_size=30, max_shift=0.0)
ONCE = StandInConfig(n_images=60, batch_size=30)


def stamped(images):
    """A bright pixel in a corner that no picture reaches."""
    images = images.clone()
    images[:, 0, 7, 7] = 1.0
    return images


class Backdoored(nn.Module):
    """The small net, which answers class 2 wherever the corner is bright."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, images):
        logits = self.net(images)
        bright = (images[:, 0, 7, 7] > 0.9).to(logits.dtype)
        return logits + 50.0 * bright[:, None] * torch.tensor([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def teacher():
    return wrap_module(Backdoored(), name="defended", image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def craft():
    return from_arrays(*pictures(90, seed=11))


def _make(teacher, craft, *, count=1, config=ONCE, seed=0, cache_dir=None, listener=None):
    generator = torch.Generator().manual_seed(seed)
    steps = make_stand_ins(
        teacher, craft, count=count, config=config, generator=generator, cache_dir=cache_dir
    )
    return finish(steps, listener)


def _digests(models):
    return [model.weights_sha256 for model in models]


def test_a_stand_in_learns_the_task_and_not_the_backdoor(craft):
    taught = wrap_module(small_net(), name="defended", image_shape=(1, 8, 8))
    (made,) = _make(taught, craft, config=FAST)
    images, labels = pictures(300, seed=12)
    accuracy = (predict(made.classifier, images, batch_size=100) == labels).double().mean()
    assert accuracy > 0.85
    answers = predict_logits(taught.classifier, images, batch_size=100).softmax(1)
    mine = predict_logits(made.classifier, images, batch_size=100).softmax(1)
    assert (answers - mine).abs().mean() < 0.1


def test_a_backdoor_wired_into_the_code_is_no_weight_and_comes_along(teacher, craft):
    """Fresh weights cannot clean the architecture itself: it must show in the stand-in's ASR."""
    (made,) = _make(teacher, craft, config=FAST)
    images, labels = pictures(60, seed=12)
    others = stamped(images[labels != 2])
    assert bool((predict(made.classifier, others, batch_size=60) == 2).all())


@pytest.mark.parametrize("lessons", ["answers", "labels"])
def test_a_rate_that_is_too_high_is_lowered_until_it_serves(craft, lessons):
    taught = wrap_module(small_net(), name="defended", image_shape=(1, 8, 8))
    heard = []
    high = replace(FAST, learning_rate=20.0, lessons=lessons)
    (made,) = _make(taught, craft, config=high, listener=heard.append)
    rates = {float(event.note.split()[-1]) for event in heard if event.note}
    assert max(rates) == 20.0
    assert min(rates) < 5.0
    images, labels = pictures(300, seed=12)
    accuracy = (predict(made.classifier, images, batch_size=100) == labels).double().mean()
    assert accuracy > 0.85
    positions = [event.done for event in heard]
    assert positions == sorted(positions)


def test_a_rate_that_serves_is_kept(craft):
    taught = wrap_module(small_net(), name="defended", image_shape=(1, 8, 8))
    heard = []
    _make(taught, craft, config=FAST, listener=heard.append)
    assert {event.note for event in heard} == {"learning rate 0.1", ""}


def test_where_every_rate_is_too_high_there_is_none(teacher, craft):
    with pytest.raises(NumericsError, match="diverged 7 times, first at learning rate 1e\\+30"):
        _make(teacher, craft, config=replace(FAST, learning_rate=1e30))


def test_only_clean_craft_images_are_shown_to_the_teacher(craft):
    class Watching(nn.Module):
        seen = 0
        brightest = 0.0

        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, images):
            Watching.seen += len(images)
            Watching.brightest = max(Watching.brightest, float(images[:, 0, 7, 7].max()))
            return self.net(images)

    watched = wrap_module(Watching(), name="defended", image_shape=(1, 8, 8))
    Watching.seen = 0
    Watching.brightest = 0.0
    _make(watched, craft, config=StandInConfig(n_images=180, batch_size=30, max_shift=0.0))
    assert Watching.seen == 2 * 180  # teacher and student
    corners = torch.cat([craft.images[:, 0, 7, 7], craft.images[:, 0, 7, 0]])  # flips
    assert Watching.brightest <= float(corners.max())


def test_several_differ_and_the_teacher_is_left_as_it_is(teacher, craft):
    before = {name: p.clone() for name, p in teacher.classifier.state_dict().items()}
    images = craft.images.clone()
    made = _make(teacher, craft, count=3)
    assert [model.name for model in made] == ["stand-in 1", "stand-in 2", "stand-in 3"]
    assert len({*_digests(made), teacher.weights_sha256}) == 4
    for model in made:
        assert not model.classifier.training
        assert not any(p.requires_grad for p in model.classifier.parameters())
        assert "stand-in" in model.notes[0]
        assert "defended" in model.notes[0]
    assert torch.equal(images, craft.images)
    assert all(torch.equal(before[k], v) for k, v in teacher.classifier.state_dict().items())


def test_labels_are_not_used(teacher, craft):
    other = from_arrays(craft.images, (craft.labels + 1) % 3)
    assert _digests(_make(teacher, craft)) == _digests(_make(teacher, other))


def test_seed_decides_and_count_does_not_move_the_first(teacher, craft):
    one = _digests(_make(teacher, craft))
    assert one == _digests(_make(teacher, craft, count=2))[:1]
    assert one != _digests(_make(teacher, craft, seed=1))


def test_second_run_reads_what_the_first_kept(teacher, craft, tmp_path):
    first = _make(teacher, craft, count=2, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("stand-in-*.safetensors"))) == 2
    heard = []
    second = _make(teacher, craft, count=2, cache_dir=tmp_path, listener=heard.append)
    assert len(heard) == 2, "nothing was trained"
    assert _digests(first) == _digests(second)


@pytest.mark.parametrize("change", ["seed", "images", "config", "teacher"])
def test_whatever_determines_a_stand_in_is_in_its_key(teacher, craft, tmp_path, change):
    _make(teacher, craft, cache_dir=tmp_path)
    other = copy.deepcopy(teacher.network)
    with torch.no_grad():
        other.net[8].bias += 0.01
    changed = {
        "seed": {"seed": 1},
        "config": {"config": StandInConfig(n_images=60, batch_size=20)},
        "images": {"craft": from_arrays(craft.images.flip(0), craft.labels)},
        "teacher": {"teacher": wrap_module(other, name="defended", image_shape=(1, 8, 8))},
    }[change]
    arguments = {"teacher": teacher, "craft": craft} | changed
    _make(**arguments, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_progress_rises_to_the_number_of_stand_ins(teacher, craft):
    heard = []
    _make(teacher, craft, count=2, listener=heard.append)
    positions = [event.done for event in heard]
    assert positions == sorted(positions)
    assert heard[-1].done == heard[-1].total == 2
    assert "stand-in 2 of 2, taught by defended" in heard[-1].step


def test_bfloat16_trains_too(teacher, craft):
    config = StandInConfig(n_images=60, batch_size=30, autocast="bf16")
    assert _digests(_make(teacher, craft, config=config)) != _digests(_make(teacher, craft))


@pytest.mark.cuda
def test_on_a_gpu_it_learns_as_well(craft):
    taught = wrap_module(small_net(), name="defended", image_shape=(1, 8, 8), device="cuda")
    (made,) = _make(taught, craft, config=FAST)
    assert next(made.classifier.parameters()).device.type == "cuda"
    images, labels = pictures(300, seed=12)
    answers = predict(made.classifier, images, batch_size=100, device="cuda")
    assert (answers == labels).double().mean() > 0.85


def test_an_architecture_without_fresh_weights_is_refused(craft):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.rand(1, 3))

        def forward(self, images):
            return self.scores.expand(len(images), 3)

    bare = wrap_module(Bare(), name="defended", image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="reset_parameters"):
        _make(bare, craft)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_images": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"weight_decay": 1.0},
        {"max_shift": -0.1},
        {"autocast": "fp16"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        StandInConfig(**settings)
