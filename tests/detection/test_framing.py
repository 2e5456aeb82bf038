"""A perturbation laid over the box that is asked about."""

from __future__ import annotations

import torch

from bdaudit.detection import framed, mark, pixels_of
from bdaudit.perturbation import apply_delta

BOXES = torch.tensor([[10.0, 20.0, 50.0, 60.0], [40.0, 40.0, 72.0, 90.0]])
IMAGES = mark(torch.full((2, 3, 96, 96), 0.5), BOXES)


def pattern() -> torch.Tensor:
    """1 in the middle third, where the box comes to lie, and 0 around it."""
    made = torch.zeros(1, 4, 96, 96)
    made[:, :3, 32:64, 32:64] = 1.0
    return made


def test_its_middle_third_covers_the_box() -> None:
    laid = framed(pattern(), IMAGES)
    for image, each in zip(IMAGES, laid, strict=True):
        inside = image[3] > 0.5
        core = torch.nn.functional.max_pool2d(1.0 - image[3][None, None], 3, 1, 1)[0, 0] == 0
        assert float(each[0][core].min()) > 0.99
        assert float(each[0][inside].mean()) > 0.97
        assert float(each[0][~inside].mean()) < 0.01
        assert not bool(each[3].any())


def test_no_value_grows_and_the_gradient_reaches_it() -> None:
    delta = (torch.rand(1, 4, 96, 96, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.1
    delta.requires_grad_()
    shown = apply_delta(IMAGES, delta)
    change = pixels_of(shown) - pixels_of(IMAGES)
    assert float(change.detach().abs().max()) <= float(delta.detach().abs().max()) + 1e-6
    change.sum().backward()
    assert delta.grad is not None
    assert float(delta.grad[:, :3].abs().sum()) > 0.0
    assert not bool(delta.grad[:, 3].any())


def test_each_image_may_have_a_pattern_of_its_own() -> None:
    several = torch.cat((pattern(), torch.zeros_like(pattern())))
    laid = framed(several[:, None], IMAGES.expand(2, -1, -1, -1, -1))
    assert torch.equal(laid[0], framed(pattern(), IMAGES))
    assert not bool(laid[1].any())


def test_images_without_a_mark_are_left_to_plain_addition() -> None:
    delta = torch.rand(1, 4, 8, 8)
    assert framed(delta, torch.rand(3, 4, 8, 8)) is delta
    assert framed(delta, torch.rand(0, 4, 8, 8)) is delta


def test_a_large_pattern_is_no_finer_than_the_boxes_it_meets() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.rand(1, 4, 288, 288, generator=generator) - 0.5
    blocks = torch.nn.functional.avg_pool2d(delta[:, :3], 3).repeat_interleave(3, 2)
    blocks = blocks.repeat_interleave(3, 3)
    images = mark(torch.zeros(1, 3, 288, 288), torch.tensor([[96.0, 96.0, 192.0, 192.0]]))
    laid = framed(delta, images)
    assert float((laid[:, :3] - blocks).abs().mean()) < 0.05
    assert float(laid.abs().max()) <= float(blocks.abs().max()) + 1e-6
