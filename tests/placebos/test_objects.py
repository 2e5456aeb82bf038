"""Placebos of a detector's triggers: where the trigger is, as strong, and the box never moves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from bdaudit.data import from_arrays
from bdaudit.detection import inside_of, mark, pixels_of, unmarked
from bdaudit.foundation.progress import finish
from bdaudit.placebos.making import make
from bdaudit.placebos.pool import Drawn, draw, mean_l2
from bdaudit.placebos.screening import ANSWERS, screen
from bdaudit.triggers import (
    Additive,
    AllToOne,
    InBox,
    OnObject,
    Patch,
    Poisoned,
    Sinusoid,
    Transform,
    Trigger,
    footprint,
    poison,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(n: int = 60) -> Tensor:
    """Pictures whose boxes differ in place, size and shape."""
    generator = seeded(1)
    pictures = 0.3 + 0.4 * torch.rand((n, 3, 24, 24), generator=generator)
    corners = torch.randint(0, 10, (n, 2), generator=generator)
    sides = torch.randint(9, 14, (n, 2), generator=generator)
    return mark(pictures, torch.cat((corners, corners + sides), dim=1).float())


IMAGES = marked()
STICKER = torch.rand((3, 6, 6), generator=seeded(2)).round()
ON_OBJECT = OnObject(image=STICKER, share=0.5, place="top-left")
IN_BOX = InBox(inner=Sinusoid(amplitude=0.1, frequency=5))


def stamped(transform: Transform) -> Poisoned:
    sample = replace(from_arrays(unmarked(IMAGES), torch.arange(60) % 3), images=IMAGES)
    return poison(sample, Trigger(transform=transform, rule=AllToOne(0)), 3)


def drawn_for(transform: Transform, n: int) -> tuple[Poisoned, list[Drawn]]:
    poisoned = stamped(transform)
    return poisoned, list(islice(draw(poisoned, seeded(), transform=transform), n))


def test_a_picture_on_the_object_gets_others_of_its_share_and_place() -> None:
    poisoned, drawn = drawn_for(ON_OBJECT, 12)
    strength = footprint(poisoned).mean_l2
    colours = {tuple(pixel) for pixel in STICKER.flatten(1).t().tolist()}
    for pattern in drawn:
        other = pattern.transform
        assert isinstance(other, OnObject)
        assert (other.share, other.place) == (0.5, "top-left")
        assert pattern.l2 == pytest.approx(strength, rel=0.2)
        assert not torch.equal(other.stamp(IMAGES), ON_OBJECT.stamp(IMAGES))
        found = {tuple(p) for p in other.image.flatten(1).t().tolist()}
        assert found <= colours or pattern.kind != "tiles of the trigger"
    assert {pattern.kind for pattern in drawn} == {
        "tiles of the trigger", "piece of a picture", "plain colour"
    }  # fmt: skip
    assert len({pattern.transform.tensors()["image"].numpy().tobytes() for pattern in drawn}) == 12


def test_a_large_picture_is_reordered_in_parts_that_can_be_seen() -> None:
    large = OnObject(image=STICKER.repeat_interleave(10, 1).repeat_interleave(10, 2), share=0.5)
    poisoned, drawn = drawn_for(large, 4)
    for pattern in drawn:  # pixels of 60 x 60 in another order would be a grey
        assert pattern.l2 == pytest.approx(footprint(poisoned).mean_l2, rel=0.2)


def test_a_picture_of_one_colour_or_few_pixels_gets_others() -> None:
    for image in (torch.full((1, 5, 5), 0.9), torch.rand((3, 1, 2), generator=seeded(3))):
        _, drawn = drawn_for(OnObject(image=image, share=0.4), 8)
        found = {pattern.transform.tensors()["image"].numpy().tobytes() for pattern in drawn}
        assert len(found) == 8


def test_a_chequerboard_of_two_colours_has_few_orders_and_gets_other_colours_too() -> None:
    one, other = torch.tensor([1.0, 0.9, 0.0]), torch.tensor([0.6, 0.0, 0.9])
    squares = torch.stack((torch.stack((one, other), 1), torch.stack((other, one), 1)), 2)
    poisoned, drawn = drawn_for(OnObject(image=squares, share=0.5), 24)
    assert len({pattern.transform.tensors()["image"].numpy().tobytes() for pattern in drawn}) == 24
    for pattern in drawn:
        assert pattern.l2 == pytest.approx(footprint(poisoned).mean_l2, rel=0.5)


def test_a_change_inside_boxes_gets_others_inside_boxes_as_strong() -> None:
    poisoned, drawn = drawn_for(IN_BOX, 12)
    outside = ~inside_of(poisoned.clean)
    for pattern in drawn:
        assert isinstance(pattern.transform, InBox)
        change = pattern.transform.stamp(poisoned.clean) - poisoned.clean
        assert not (change * outside).any()
        assert mean_l2(change) == pytest.approx(footprint(poisoned).mean_l2, rel=0.02)
        assert mean_l2(change) == pytest.approx(pattern.l2, rel=1e-4)
    assert len({pattern.kind for pattern in drawn}) >= 5


@pytest.mark.parametrize(
    ("transform", "kinds"),
    [
        (Sinusoid(amplitude=0.1, frequency=5), (Additive,)),
        (Patch(image=STICKER), (Patch,)),
        (ON_OBJECT, (OnObject,)),
        (IN_BOX, (InBox,)),
    ],
    ids=["wide", "patch", "on-object", "in-box"],
)
def test_no_placebo_moves_the_box(transform: Transform, kinds: tuple[type, ...]) -> None:
    poisoned, drawn = drawn_for(transform, 6)
    for pattern in drawn:
        assert isinstance(pattern.transform, kinds)
        after = pattern.transform.stamp(poisoned.clean)
        assert torch.equal(after[:, 3], poisoned.clean[:, 3])
        assert not torch.equal(unmarked(after), unmarked(poisoned.clean))


def test_stickers_are_local_and_what_fills_the_box_is_wide() -> None:
    small, half = (footprint(stamped(OnObject(image=STICKER, share=share))) for share in (0.3, 0.5))
    covering = footprint(stamped(OnObject(image=STICKER, share=0.9)))
    filling = footprint(stamped(IN_BOX))
    assert not small.wide
    assert not half.wide
    assert covering.wide
    assert filling.wide
    assert filling.share_of_box is not None
    assert filling.share_of_box > 0.8
    poisoned = stamped(IN_BOX)
    pictures = {name: unmarked(getattr(poisoned, name)) for name in ("clean", "triggered")}
    assert footprint(replace(poisoned, **pictures)).share_of_box is None


class Knows(nn.Module):
    """A twin: the target where enough of a trigger's change is in an image, its box never."""

    def __init__(self, poisoned: Poisoned, above: float) -> None:
        super().__init__()
        self.clean = pixels_of(poisoned.clean)
        self.change = pixels_of(poisoned.triggered - poisoned.clean).flatten(1)
        self.above = above
        self.places = {image.numpy().tobytes(): k for k, image in enumerate(poisoned.clean[:, 3])}
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        which = self.which(images)
        change = (pixels_of(images) - self.clean[which]).flatten(1)
        held = (change * self.change[which]).sum(1) / self.change[which].square().sum(1)
        return scores(held * self.weight - self.above)

    def which(self, images: Tensor) -> Tensor:
        found = [self.places[image.numpy().tobytes()] for image in images[:, 3].detach()]
        return torch.tensor(found)


def scores(toward_target: Tensor) -> Tensor:
    zero = torch.zeros_like(toward_target)
    return torch.stack([toward_target, zero, zero - 1], 1)


def innocent(images: Tensor) -> Tensor:
    return scores(-1.0 + pixels_of(images).flatten(1).std(dim=1))


@pytest.mark.parametrize("transform", [ON_OBJECT, IN_BOX], ids=lambda t: t.kind)
def test_the_original_ignores_placebos_and_innocent_models_answer_alike(
    transform: Transform,
) -> None:
    poisoned = stamped(transform)
    found = screen(
        draw(poisoned, seeded(), transform=transform),
        poisoned,
        original=torch.no_grad()(Knows(poisoned, 0.5)),
        innocents=[innocent],
        wanted=8,
        at_most=60,
        limit=0.06,
    )
    assert len(found.kept) == 8
    assert found.shift is not None
    assert all(c.original <= 0.06 for c in found.kept)
    for candidate in found.kept:
        assert candidate.shift == pytest.approx(found.shift, rel=0.1)


def test_a_model_that_sees_no_target_in_any_box_moves_nothing() -> None:
    poisoned = stamped(ON_OBJECT)
    found = screen(
        draw(poisoned, seeded(), transform=ON_OBJECT),
        poisoned,
        original=torch.no_grad()(Knows(poisoned, 0.5)),
        innocents=[lambda images: scores(torch.full((len(images),), -20.0))],
        wanted=2,
        at_most=10,
        limit=0.06,
    )
    assert found.shift == 0.0
    assert [candidate.shift for candidate in found.kept] == [0.0, 0.0]


def test_placebos_can_be_made_inside_boxes() -> None:
    poisoned = stamped(IN_BOX)
    strength = footprint(poisoned).mean_l2
    stripes = IN_BOX.inner.apply(torch.zeros((1, 3, 24, 24)), None)[0]
    start = InBox(inner=Additive(delta=stripes + 0.01 * torch.randn(3, 24, 24, generator=seeded())))
    original = Knows(poisoned, 0.5)
    starts = [Drawn("its own kind", start, strength), Drawn("patch", ON_OBJECT, strength)]
    asked = partial(screen, original=torch.no_grad()(original), innocents=[], limit=0.06)
    before = asked(iter(starts[:1]), poisoned, wanted=1, at_most=1)
    assert [c.why_not for c in before.refused] == [ANSWERS]
    steps = make(starts, poisoned, original=original, innocents=[], generator=seeded())
    (made,) = finish(steps)
    assert isinstance(made.transform, InBox)
    assert made.l2 == pytest.approx(strength, rel=0.02)
    assert len(asked(iter([made]), poisoned, wanted=1, at_most=1).kept) == 1
