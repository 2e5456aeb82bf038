from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bdaudit.errors import ConfigError, DataError, NumericsError
from bdaudit.foundation.progress import finish
from bdaudit.models import preactresnet18
from bdaudit.relearning import (
    RelearnConfig,
    Relearned,
    choose_rate,
    compare_relearning,
    read_gap,
    relearn,
)
from bdaudit.triggers import from_callable, poison
from tests.twins import (
    NUM_CLASSES,
    TARGET,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
    twin_trigger,
)

TRIGGER = from_callable(twin_trigger, TARGET)
CONFIG = RelearnConfig(learning_rates=(1e-5, 1e-4, 1e-3, 1e-2), steps=(1, 2, 5), draws=3, n_clean=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def taught(
    classifier: nn.Module, config: RelearnConfig = CONFIG, *, n: int = 40, seed: int = 0
) -> Relearned:
    sample, held_out = twin_sample(n, 1), twin_sample(40, 2)
    return finish(
        relearn(
            classifier,
            sample.images,
            sample.labels,
            craft=poison(sample, TRIGGER, NUM_CLASSES),
            held_out=poison(held_out, TRIGGER, NUM_CLASSES),
            config=config,
            generator=seeded(seed),
        )
    )


def of(*curve: float, bare: float = 0.0, n: int = 40, draws: int = 3) -> Relearned:
    """Make a relearning at rate 1 whose ASR after the steps is `curve`, alike in every draw.

    Untriggered, the images go to the target at the rate `bare`; they are not the same images.
    """
    triggered = torch.tensor([[k < share * n for k in range(n)] for share in curve])
    clean = torch.tensor([[n - 1 - k < bare * n for k in range(n)] for _ in curve])
    steps = tuple(range(1, len(curve) + 1))
    return Relearned(
        config=replace(CONFIG, learning_rates=(1.0,), steps=steps, draws=draws),
        before=torch.zeros(n, dtype=torch.bool),
        triggered={1.0: triggered.expand(draws, -1, -1)},
        clean={1.0: clean.expand(draws, -1, -1)},
    )


def at_rates(shares: dict[float, float], *, bare: float = 0.0) -> Relearned:
    """Make a relearning whose ASR is the same after every step, by learning rate."""
    made = {rate: of(share, bare=bare) for rate, share in shares.items()}
    return replace(
        of(0.0),
        triggered={rate: one.triggered[1.0] for rate, one in made.items()},
        clean={rate: one.clean[1.0] for rate, one in made.items()},
    )


def test_twins_relearn_as_what_they_are():
    innocents = {"innocent": taught(innocent_twin()), "removed": taught(removed_twin())}
    asleep = compare_relearning(taught(dormant_twin()), innocents, generator=seeded())
    gone = compare_relearning(
        innocents.pop("removed"), innocents, generator=seeded(), learning_rate=1e-3
    )
    assert asleep.settings["learning_rate"] == 1e-3  # at 1e-2 the innocent one is taught
    assert asleep.gap == 1.0
    assert read_gap(asleep) == "dormant"
    assert gone.gap == 0.0
    assert read_gap(gone) == "removed"


def test_the_model_is_left_as_it_is_and_the_seed_decides():
    classifier = dormant_twin()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    config = replace(CONFIG, learning_rates=(1e-4,), draws=2)
    once, again, otherwise = (
        taught(classifier, config),
        taught(classifier, config),
        taught(classifier, config, seed=1),
    )
    assert all(torch.equal(before[name], now) for name, now in classifier.state_dict().items())
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert torch.equal(once.triggered[1e-4], again.triggered[1e-4])
    assert not torch.equal(once.triggered[1e-4], otherwise.triggered[1e-4])


def test_batch_norm_keeps_its_statistics_unless_told():
    classifier = preactresnet18(NUM_CLASSES, width=4, in_channels=1).eval().requires_grad_(False)
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, *_: object) -> None:
        seen.append(module.get_buffer("running_mean").clone())

    norm = next(m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_hook(note)
    config = replace(CONFIG, learning_rates=(0.01,), draws=1)
    taught(classifier, config)
    assert all(torch.equal(mean, norm.running_mean) for mean in seen)
    seen.clear()
    taught(classifier, replace(config, freeze_batch_norm=False))
    assert not torch.equal(seen[-1], norm.running_mean)


def test_before_any_step_it_is_the_trigger_alone():
    assert taught(original_twin()).before.all()
    assert not taught(dormant_twin()).before.any()


def test_a_rate_that_diverges_is_left_out():
    config = replace(CONFIG, learning_rates=(1e-4, 1e20))
    found = taught(dormant_twin(), config)
    assert found.diverged == (1e20,)
    assert list(found.triggered) == [1e-4]
    with pytest.raises(NumericsError, match="no finite answers"):
        found.asr(1e20)
    assert choose_rate([found, taught(innocent_twin(), config)]) == 1e-4


def test_the_rate_is_chosen_on_innocent_models_alone():
    slow = at_rates({0.03: 0.0, 0.1: 0.0, 0.3: 0.0})
    assert choose_rate([slow]) == 0.3
    assert choose_rate([slow, at_rates({0.03: 0.0, 0.1: 0.05, 0.3: 0.6})]) == 0.1
    assert choose_rate([slow, at_rates({0.03: 0.9, 0.1: 0.9, 0.3: 0.9})]) == 0.03
    assert choose_rate([slow], below=0.3) == 0.1
    with pytest.raises(NumericsError, match="no finite answers"):
        choose_rate([slow], below=0.03)
    with pytest.raises(ConfigError, match="one innocent model or more"):
        choose_rate([])


def test_going_to_the_target_anyway_is_no_reason_against_a_rate_until_it_is_collapse():
    """Measured on SIG, emoji, at .003: an innocent model's .19 are .13 without the trigger."""
    swayed = at_rates({0.1: 0.19, 0.3: 0.19}, bare=0.13)
    assert choose_rate([swayed]) == 0.3
    assert choose_rate([at_rates({0.1: 0.35, 0.3: 0.35}, bare=0.13)]) == 0.1
    assert choose_rate([at_rates({0.1: 0.3, 0.3: 0.3}, bare=0.3)]) == 0.1


def test_the_gap_is_against_the_strongest_innocent():
    evidence = compare_relearning(
        of(0.2, 0.6, 1.0),
        {"weak": of(0.0, 0.0, 0.0), "strong": of(0.1, 0.2, 0.3)},
        generator=seeded(),
        learning_rate=1.0,
    )
    assert evidence.gap == pytest.approx(0.6 - 0.2)
    assert evidence.settings["strongest"] == "strong"
    assert evidence.asr == pytest.approx((0.2, 0.6, 1.0))
    assert evidence.innocent_asr["strong"] == pytest.approx((0.1, 0.2, 0.3))
    assert evidence.low < evidence.gap < evidence.high


def test_answering_the_target_to_anything_is_not_relearning():
    collapsed = compare_relearning(
        of(0.9, bare=0.9), {"innocent": of(0.0)}, generator=seeded(), learning_rate=1.0
    )
    assert collapsed.gap == pytest.approx(0.0)
    assert collapsed.clean_target_rate == pytest.approx((0.9,))
    # Nor does an innocent model's collapse hide what a model remembers.
    remembered = compare_relearning(
        of(0.9), {"innocent": of(0.9, bare=0.9)}, generator=seeded(), learning_rate=1.0
    )
    assert remembered.gap == pytest.approx(0.9)


def test_the_interval_covers_images_and_draws():
    """Draw many worlds whose gap is known: an effect of each draw, and one of each image."""
    rng = np.random.default_rng(0)
    covered = 0
    n_worlds, n_draws, n_images, truth = 200, 5, 60, 0.4
    for world in range(n_worlds):
        share = truth + 0.1 * rng.standard_normal((n_draws, 1)) * np.ones((1, n_images))
        share = np.clip(share + 0.2 * rng.standard_normal((1, n_images)), 0, 1)
        outcomes = torch.from_numpy(rng.random((n_draws, 1, n_images)) < share[:, None])
        never = of(0.0, n=n_images, draws=n_draws)
        evidence = compare_relearning(
            replace(never, triggered={1.0: outcomes}),
            {"never": never},
            generator=seeded(world),
            n_bootstrap=400,
        )
        covered += evidence.low <= truth <= evidence.high
    # Binomial noise of 200 worlds is .015; a bootstrap of the images alone covers about .75.
    assert covered / n_worlds > 0.91


def test_a_gap_is_read_by_its_whole_interval():
    evidence = compare_relearning(of(0.5), {"i": of(0.4)}, generator=seeded(), learning_rate=1.0)
    assert read_gap(evidence) == "unknown"
    assert read_gap(evidence, limit=-0.5) == "dormant"
    assert read_gap(evidence, limit=0.9) == "removed"


def test_models_taught_otherwise_are_refused():
    with pytest.raises(ConfigError, match="same steps, draws and held-out images, got other"):
        compare_relearning(of(0.5), {"other": of(0.5, 0.6)}, generator=seeded())
    with pytest.raises(ConfigError, match="one innocent model or more"):
        compare_relearning(of(0.5), {}, generator=seeded())


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match=r"expected 31 images to draw shots from.*got 30"):
        taught(dormant_twin(), replace(CONFIG, shots=31))


@pytest.mark.parametrize(
    "fields",
    [
        {"shots": 0},
        {"steps": (5, 2)},
        {"steps": ()},
        {"learning_rates": (0.0, 0.1)},
        {"learning_rates": (float("inf"),)},
        {"momentum": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        replace(CONFIG, **fields)
