"""Placebos are as strong as the true trigger, and drawn from more than its own kind."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from bdaudit.data import from_arrays
from bdaudit.placebos.pool import draw
from bdaudit.triggers import (
    AllToOne,
    Poisoned,
    Quantise,
    Reflection,
    Trigger,
    footprint,
    poison,
)
from bdaudit.triggers.transforms import (
    Additive,
    Blend,
    Patch,
    Sinusoid,
    Transform,
    Warp,
    control_grid,
    elastic_grid,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stamped(transform: Transform, shape: tuple[int, int, int] = (3, 16, 16)) -> Poisoned:
    images = torch.rand((40, *shape), generator=seeded(1))
    labels = torch.arange(40) % 4
    return poison(from_arrays(images, labels), Trigger(transform=transform, rule=AllToOne(0)), 4)


WIDE: dict[str, Transform] = {
    "blend": Blend(image=torch.rand((3, 16, 16), generator=seeded(2)), alpha=0.2),
    "sinusoid": Sinusoid(amplitude=20 / 255, frequency=6),
    "additive": Additive(delta=0.05 * torch.randn((3, 16, 16), generator=seeded(3))),
    "quantise": Quantise(levels=4),
    "reflection": Reflection(pictures=torch.rand((3, 3, 16, 16), generator=seeded(5)), alpha=0.3),
    "warp": Warp(grid=elastic_grid(control_grid(4, seeded(4)), (16, 16), strength=2.0)),
}


@pytest.mark.parametrize("kind", WIDE)
def test_placebos_of_a_trigger_over_the_image_are_as_strong(kind: str) -> None:
    poisoned = stamped(WIDE[kind])
    strength = footprint(poisoned).mean_l2
    drawn = list(islice(draw(poisoned, seeded()), 18))
    for pattern in drawn:
        changed = pattern.transform.apply(poisoned.clean, None).clamp(0, 1) - poisoned.clean
        l2 = float(changed.flatten(1).norm(dim=1).mean())
        assert l2 == pytest.approx(strength, rel=0.03), pattern.kind
        assert l2 == pytest.approx(pattern.l2, rel=1e-4)
    assert len({pattern.kind for pattern in drawn}) >= 5


def test_placebos_of_a_patch_are_its_pixels_in_another_order_there_or_mirrored() -> None:
    image = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).view(1, 3, 3)
    poisoned = stamped(Patch(image=image, offset=(1, 2)))
    drawn = list(islice(draw(poisoned, seeded()), 12))
    assert {pattern.kind for pattern in drawn} == {"patch"}
    places = set()
    for pattern in drawn:
        transform = pattern.transform
        assert isinstance(transform, Patch)
        assert transform.mask is not None
        assert int(transform.mask.sum()) == 9
        colours = transform.image[:, transform.mask[0] > 0]
        assert torch.equal(colours.sort(dim=1).values, image.flatten().sort().values.repeat(3, 1))
        places.add(transform.offset)
    assert len(places) > 1
    assert {row for row, _ in places} <= {12, 1}, "one pixel off the bottom edge, or off the top"
    assert {column for _, column in places} <= {11, 2}


@pytest.mark.parametrize("size", [1, 3])
def test_a_patch_of_one_colour_gets_others_and_no_two_placebos_are_the_same(size: int) -> None:
    poisoned = stamped(Patch(image=torch.ones(1, size, size), offset=(1, 1)))
    drawn = list(islice(draw(poisoned, seeded()), 20))
    assert len(drawn) == 20
    looks = set()
    for pattern in drawn:
        assert isinstance(pattern.transform, Patch)
        assert pattern.transform.mask is not None
        assert int(pattern.transform.mask.sum()) == size**2
        looks.add((pattern.transform.offset, str(pattern.transform.image.tolist())))
    assert len(looks) == 20
    Trigger(transform=drawn[0].transform, rule=AllToOne(0))  # it can be digested


def test_the_same_seed_draws_the_same_and_another_others() -> None:
    poisoned = stamped(WIDE["sinusoid"])

    def patterns(seed: int) -> list[torch.Tensor]:
        drawn = islice(draw(poisoned, seeded(seed)), 6)
        return [pattern.transform.tensors()["delta"] for pattern in drawn]

    one, again, other = patterns(0), patterns(0), patterns(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_placebos_of_the_users_own_come_first_and_as_they_are() -> None:
    own = Trigger(transform=Sinusoid(amplitude=0.3, frequency=3), rule=AllToOne(0), source="mine")
    poisoned = stamped(WIDE["blend"])
    first, second = islice(draw(poisoned, seeded(), given=[own]), 2)
    assert first.transform is own.transform
    assert first.kind == "given: mine"
    assert first.l2 > 1.5 * second.l2  # not brought to the trigger's strength


def test_a_trigger_that_nothing_added_can_equal_ends_the_pool() -> None:
    """White in place of black images: black and white are as far as anything added can go."""
    images = torch.zeros((40, 1, 8, 8))
    images[:, :, 0, 0] = 0.5  # or there were nothing to make a pattern of
    white = Blend(image=torch.ones((1, 8, 8)), alpha=1.0)
    trigger = Trigger(transform=white, rule=AllToOne(0))
    poisoned = poison(from_arrays(images, torch.arange(40) % 4), trigger, 4)
    assert len(list(islice(draw(poisoned, seeded()), 500))) < 500


def test_a_local_trigger_that_lies_elsewhere_on_every_image_gets_patterns_over_the_image() -> None:
    poisoned = stamped(Additive(delta=torch.zeros((3, 16, 16))))
    moved = poisoned.clean.clone()
    for k in range(len(moved)):
        at = (k, slice(None), k % 16, (7 * k + k // 16) % 16)  # nowhere twice
        moved[at] = 1.0 - moved[at]
    drawn = list(islice(draw(replace(poisoned, triggered=moved), seeded()), 6))
    assert len(drawn) == 6
    assert "patch" not in {pattern.kind for pattern in drawn}
