"""Many white-box searches at once: as one by one, whatever else is in the batch."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from bdaudit.errors import BdauditError, ConfigError, DataError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.reactivation import (
    Search,
    SpecificTerms,
    WhiteboxConfig,
    WhiteboxResult,
    most_together,
    reactivate_together,
)
from tests.pretend import pretended_card, pretended_graphs
from tests.twins import TARGET, dormant_twin, innocent_twin, twin_sample, twin_trigger

CONFIG = WhiteboxConfig(eps=0.03, n_passes=5, batch_size=20)
SAMPLE = twin_sample(80, 0)
CLEAN, LABELS = SAMPLE.images[SAMPLE.labels != TARGET], SAMPLE.labels[SAMPLE.labels != TARGET]
TRIGGERED = twin_trigger(CLEAN)
TOLERANCE = 0.02
"""Share of a delta's values that may differ by more than a thousandth of eps. A value moves by
its gradient's sign, and where a gradient is nearly nothing rounding decides."""


def searches(**settings) -> list[Search]:
    """Two radii with the trigger, one without, and one to another class on fewer images."""
    config = replace(CONFIG, **settings)
    target = torch.full((len(CLEAN),), TARGET)
    other = LABELS != 1
    cases = [
        (TRIGGERED, target, 0.02, CLEAN, LABELS),
        (TRIGGERED, target, 0.04, CLEAN, LABELS),
        (CLEAN, target, 0.04, CLEAN, LABELS),
        (TRIGGERED[other], torch.ones_like(LABELS[other]), 0.04, CLEAN[other], LABELS[other]),
    ]
    reference = innocent_twin()
    return [
        Search(
            triggered=images,
            targets=targets,
            config=replace(config, eps=eps),
            generator=torch.Generator().manual_seed(number),
            specific=SpecificTerms(clean=clean, labels=labels, reference=reference)
            if config.objective == "specific"
            else None,
        )
        for number, (images, targets, eps, clean, labels) in enumerate(cases)
    ]


def together(net: nn.Module, wanted: Sequence[Search]):
    return finish(reactivate_together(net, wanted))


def assert_alike(found: object, expected: object) -> None:
    """Hold two results against each other, to rounding."""
    assert isinstance(found, WhiteboxResult)
    assert isinstance(expected, WhiteboxResult)
    assert found.config == expected.config
    assert found.seed == expected.seed
    assert found.gradient_passes == expected.gradient_passes
    assert found.craft_success == pytest.approx(expected.craft_success, abs=0.05)
    assert found.loss_trace == pytest.approx(expected.loss_trace, abs=0.02)
    apart = (found.delta - expected.delta).abs() > 1e-3 * expected.config.eps
    assert float(apart.float().mean()) <= TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm": "l2"},
        {"optimizer": "research"},
        {"objective": "specific"},
        {"restarts": 2, "patience": 1},
    ],
    ids=str,
)
def test_each_finds_what_it_finds_alone(settings):
    net = dormant_twin()
    alone = [together(net, [search])[0] for search in searches(**settings)]
    for found, expected in zip(together(net, searches(**settings)), alone, strict=True):
        assert_alike(found, expected)


def test_one_that_fails_does_not_stop_the_others():
    class Wild(nn.Module):
        """Has no answer for images of one brightness, which one search alone comes to."""

        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()

        def forward(self, images):
            wild = (images[:, :, 0, 0] > 0.9).any(1, keepdim=True)
            return torch.where(wild, torch.nan, self.net(images))

    net = Wild()
    wanted = searches()
    bright = TRIGGERED.clone()
    bright[:, :, 0, 0] = 0.95
    bad = replace(wanted[0], triggered=bright)
    lost = replace(wanted[1], targets=torch.full_like(wanted[1].targets, 9))
    failed, refused, *fine = together(net, [bad, lost, *wanted[2:]])
    assert isinstance(failed, NumericsError)
    assert isinstance(refused, DataError)
    alone = [together(net, [search])[0] for search in searches()[2:]]
    for found, expected in zip(fine, alone, strict=True):
        assert_alike(found, expected)


def test_what_does_not_go_together_is_refused():
    first, second, *_ = searches()
    with pytest.raises(ConfigError, match="eps alone"):
        together(dormant_twin(), [first, replace(second, config=replace(CONFIG, n_passes=9))])
    with pytest.raises(DataError, match="one shape"):
        together(dormant_twin(), [first, replace(second, triggered=TRIGGERED[..., :4])])
    with pytest.raises(ConfigError, match="one search or more"):
        together(dormant_twin(), [])


def test_progress_counts_all_of_them():
    heard = []
    finish(reactivate_together(dormant_twin(), searches()), heard.append)
    done = [event.done for event in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1].total == 4 * CONFIG.n_passes
    assert heard[0].step == "white box, linf eps 0.02 to 0.04"


def test_too_little_memory_halves_the_batch():
    net = dormant_twin()
    largest = []

    def limited(module, args):
        largest.append(len(args[0]))
        if len(args[0]) > 45:
            raise torch.OutOfMemoryError("too much")

    expected = together(net, searches())
    handle = net.register_forward_pre_hook(limited)
    heard = []
    found = finish(reactivate_together(net, searches()), heard.append)
    handle.remove()
    assert max(largest) > 45  # it was tried
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
    assert heard[-1].done == pytest.approx(heard[-1].total)


def test_memory_bounds_how_many_go_together():
    wide = nn.Sequential(nn.Conv2d(1, 4000, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4000 * 36, 4))
    images = torch.rand(100, 1, 8, 8)
    assert most_together(dormant_twin(), images, CONFIG) == 200 // 20
    assert most_together(wide, images, replace(CONFIG, batch_size=100)) == 1
    assert most_together(wide, images[:1], CONFIG) > 1


def test_a_recorded_step_finds_the_same():
    """The same on a pretended card, where every operation of one step is replayed."""
    expected = together(dormant_twin(), searches())
    with pretended_card() as card, pretended_graphs() as graphs:
        found = together(dormant_twin().to(card), searches())
        without = together(dormant_twin().to(card), searches(graph=False)[:2])
    assert graphs
    assert sum(graph.n_replays for graph in graphs) > 10
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
        assert not one.diagnostics
    for one, other in zip(without, expected, strict=False):
        assert_alike(replace(one, config=other.config), other)


@pytest.mark.parametrize("kind", ["waits", "counts"])
def test_what_cannot_be_recorded_is_done_step_by_step(kind):
    class Odd(nn.Module):
        """Looks at its images in Python, or answers otherwise from the call that is recorded on."""

        def __init__(self) -> None:
            super().__init__()
            self.net = dormant_twin()
            self.n_calls = 0

        def forward(self, images):
            logits = self.net(images)
            if not images.requires_grad:
                return logits
            self.n_calls += 1
            if kind == "waits":
                return logits * (1.0 if float(images.detach().mean()) > 0 else 2.0)
            return logits * (1.0 if self.n_calls % 2 else 0.0)

    with pretended_card() as card, pretended_graphs():
        found = together(Odd().to(card), searches())
    assert not any(isinstance(outcome, BdauditError) for outcome in found)
    assert "no_cuda_graph" in {d.code for d in found[0].diagnostics}
