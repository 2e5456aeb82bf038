"""Which patterns serve as placebos is found out by asking the original and innocent models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bdaudit.data import from_arrays
from bdaudit.placebos.pool import Drawn, draw
from bdaudit.placebos.screening import screen
from bdaudit.triggers import AllToOne, Poisoned, Trigger, poison
from bdaudit.triggers.transforms import Additive, Sinusoid

SHAPE = (1, 16, 16)


def poisoned_by(trigger: Trigger) -> Poisoned:
    generator = torch.Generator().manual_seed(1)
    images = 0.3 + 0.4 * torch.rand((60, *SHAPE), generator=generator)
    return poison(from_arrays(images, torch.arange(60) % 3), trigger, 3)


TRIGGER = Trigger(transform=Sinusoid(amplitude=0.1, frequency=4), rule=AllToOne(0))
POISONED = poisoned_by(TRIGGER)


def scores(toward_target: Tensor) -> Tensor:
    """Scores of three classes: the target's, and two others at 0 and -1."""
    return torch.stack(
        [toward_target, torch.zeros_like(toward_target) - 0.0, -1 + 0 * toward_target], 1
    )


def answers_to(pattern: Tensor, *, above: float) -> Callable[[Tensor], Tensor]:
    """A model that answers the target where an image holds enough of a pattern."""

    def model(images: Tensor) -> Tensor:
        held = (images - POISONED.clean[: len(images)]).flatten(1) @ pattern.flatten()
        return scores(held / pattern.norm() ** 2 - above)

    return model


STRIPES = Sinusoid(amplitude=0.1, frequency=4).apply(torch.zeros((1, *SHAPE)), None)[0]


def innocent(images: Tensor) -> Tensor:
    """A model that nothing takes to the target, and contrast moves a little."""
    return scores(-1.0 + images.flatten(1).std(dim=1))


def of_its_own_kind() -> Iterator[Drawn]:
    """The true trigger under all strengths and noise on top: what the backdoor was made to know."""
    generator = torch.Generator().manual_seed(2)
    while True:
        noise = 0.01 * torch.randn(SHAPE, generator=generator)
        yield Drawn("its own kind", Additive(delta=STRIPES + noise), float(STRIPES.norm()))


def test_the_original_answers_to_its_whole_kind_so_none_of_it_is_a_placebo() -> None:
    found = screen(
        of_its_own_kind(),
        POISONED,
        original=answers_to(STRIPES, above=0.5),
        innocents=[innocent],
        wanted=8,
        at_most=40,
        limit=0.06,
    )
    assert found.kept == ()
    assert len(found.refused) == 40
    assert {c.why_not for c in found.refused} == {"the original answers to it"}


def test_of_a_wide_pool_those_are_kept_that_the_original_ignores() -> None:
    found = screen(
        draw(POISONED, torch.Generator().manual_seed(0)),
        POISONED,
        original=answers_to(STRIPES, above=0.5),
        innocents=[innocent],
        wanted=8,
        at_most=60,
        limit=0.06,
    )
    assert len(found.kept) == 8
    assert all(c.original <= 0.06 and c.why_not is None for c in found.kept)
    assert len({c.drawn.kind for c in found.kept}) >= 3


def test_those_that_move_an_innocent_model_as_the_trigger_does_come_first() -> None:
    found = screen(
        draw(POISONED, torch.Generator().manual_seed(0)),
        POISONED,
        original=answers_to(STRIPES, above=0.5),
        innocents=[innocent],
        wanted=4,
        at_most=60,
        limit=0.06,
    )
    assert found.shift is not None
    off = [abs((c.shift or 0.0) - found.shift) for c in found.kept]
    assert off == sorted(off)
    serving = [c for c in found.refused if c.why_not is None]
    assert serving
    assert max(off) <= min(abs((c.shift or 0.0) - found.shift) for c in serving)


def test_a_pattern_that_takes_an_innocent_model_to_the_target_by_itself_is_none() -> None:
    grating = Sinusoid(amplitude=0.1, frequency=2).apply(torch.zeros((1, *SHAPE)), None)[0]

    def pool() -> Iterator[Drawn]:
        while True:
            yield Drawn("stripes", Additive(delta=grating), float(grating.norm()))

    found = screen(
        pool(),
        POISONED,
        original=answers_to(STRIPES, above=0.5),
        innocents=[innocent, answers_to(grating, above=0.5)],
        wanted=2,
        at_most=5,
        limit=0.06,
    )
    assert found.kept == ()
    assert {c.why_not for c in found.refused} == {"it moves an innocent model by itself"}
    assert all(c.innocent == 1.0 for c in found.refused)


def test_without_an_innocent_model_the_original_alone_is_asked() -> None:
    found = screen(
        draw(POISONED, torch.Generator().manual_seed(0)),
        POISONED,
        original=answers_to(STRIPES, above=0.5),
        innocents=[],
        wanted=5,
        at_most=60,
        limit=0.06,
    )
    assert len(found.kept) == 5
    assert found.shift is None
    assert all(c.innocent is None and c.shift is None for c in found.kept)
