"""Patterns that a backdoor takes for its trigger are unlearned until the original ignores them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bdaudit.data import from_arrays
from bdaudit.foundation.progress import finish
from bdaudit.placebos.making import make
from bdaudit.placebos.pool import Drawn, mean_l2
from bdaudit.placebos.screening import ANSWERS, Screening, screen
from bdaudit.triggers import AllToOne, Trigger, poison
from bdaudit.triggers.transforms import Additive, Patch, Sinusoid

SHAPE = (1, 16, 16)
IMAGES = 0.3 + 0.4 * torch.rand((90, *SHAPE), generator=torch.Generator().manual_seed(1))
STRIPES = Sinusoid(amplitude=0.1, frequency=4).apply(torch.zeros((1, *SHAPE)), None)[0]
CHECKS = torch.ones(SHAPE)
CHECKS[:, ::2, ::2] = CHECKS[:, 1::2, 1::2] = -1.0
POISONED = poison(
    from_arrays(IMAGES, torch.arange(90) % 3),
    Trigger(transform=Additive(delta=STRIPES), rule=AllToOne(0)),
    3,
)


class Looks(nn.Module):
    """Answers the target where an image holds more of a pattern than a threshold says."""

    def __init__(self, pattern: Tensor, threshold: float) -> None:
        super().__init__()
        self.pattern = nn.Parameter(pattern.flatten() / pattern.norm() ** 2)
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        held = (images - 0.5).flatten(1) @ self.pattern - self.threshold
        return torch.stack([held, torch.zeros_like(held), torch.full_like(held, -1.0)], 1)


ORIGINAL = Looks(STRIPES, 0.5)
INNOCENT = Looks(STRIPES + 0.1 * CHECKS, 4.0)


def of_its_kind(n: int) -> list[Drawn]:
    """The trigger with noise on top, which the original takes for it, as strong."""
    generator = torch.Generator().manual_seed(2)
    strength = mean_l2(POISONED.triggered - POISONED.clean)
    found = []
    for _ in range(n):
        pattern = STRIPES + 0.1 * torch.randn(SHAPE, generator=generator)
        found.append(Drawn("noise", Additive(delta=pattern * strength / pattern.norm()), strength))
    return found


def screened(patterns: list[Drawn]) -> Screening:
    return screen(
        iter(patterns),
        POISONED,
        original=torch.no_grad()(ORIGINAL),
        innocents=[torch.no_grad()(INNOCENT)],
        wanted=len(patterns),
        at_most=len(patterns),
        limit=0.06,
    )


@pytest.fixture(scope="module")
def made() -> list[Drawn]:
    steps = make(
        of_its_kind(4),
        POISONED,
        original=ORIGINAL,
        innocents=[INNOCENT],
        generator=torch.Generator().manual_seed(0),
    )
    return list(finish(steps))


def test_what_the_original_answered_to_serves_afterwards(made: list[Drawn]) -> None:
    before, after = screened(of_its_kind(4)), screened(made)
    assert [c.why_not for c in before.refused] == [ANSWERS] * 4
    assert len(after.kept) == 4
    assert {c.drawn.kind for c in after.kept} == {"made from noise"}


def test_they_are_as_strong_and_move_an_innocent_model_alike(made: list[Drawn]) -> None:
    strength = mean_l2(POISONED.triggered - POISONED.clean)
    after = screened(made)
    assert after.shift is not None
    for candidate in after.kept:
        assert candidate.drawn.l2 == pytest.approx(strength, rel=0.02)
        assert candidate.shift == pytest.approx(after.shift, abs=0.5)


def test_models_are_left_as_they_are(made: list[Drawn]) -> None:
    assert all(p.grad is None for model in (ORIGINAL, INNOCENT) for p in model.parameters())


def test_the_same_seed_makes_the_same(made: list[Drawn]) -> None:
    steps = make(
        of_its_kind(4)[:1],
        POISONED,
        original=ORIGINAL,
        innocents=[INNOCENT],
        generator=torch.Generator().manual_seed(0),
    )
    (again,) = finish(steps)
    assert isinstance(again.transform, Additive)
    assert isinstance(made[0].transform, Additive)
    assert torch.equal(again.transform.delta, made[0].transform.delta)


def test_without_an_innocent_model_the_original_alone_is_asked() -> None:
    steps = make(
        of_its_kind(1),
        POISONED,
        original=ORIGINAL,
        innocents=[],
        generator=torch.Generator().manual_seed(0),
    )
    (alone,) = finish(steps)
    assert len(screened([alone]).kept) == 1


def test_patches_are_passed_over() -> None:
    patch = Patch(image=torch.ones((1, 3, 3)), mask=torch.ones((1, 3, 3)))
    steps = make(
        [Drawn("patch", patch, 1.0)],
        POISONED,
        original=ORIGINAL,
        innocents=[],
        generator=torch.Generator().manual_seed(0),
    )
    assert finish(steps) == ()
