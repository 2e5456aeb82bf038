"""Applying a universal perturbation and drawing a random one."""

import pytest
import torch

from bdaudit.perturbation import LinfBall, apply_delta, make_ball, random_delta


def test_delta_is_added_to_every_image_and_clamped():
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    delta = torch.tensor([0.25]).view(1, 1, 1, 1)
    assert apply_delta(images, delta).flatten().tolist() == [0.25, 0.75, 1.0]
    assert images.flatten().tolist() == [0.0, 0.5, 1.0]


def test_gradient_is_that_of_what_the_classifier_sees():
    images = torch.tensor([0.5, 0.99]).view(2, 1, 1, 1)
    delta = torch.full((1, 1, 1, 1), 0.02, requires_grad=True)
    (gradient,) = torch.autograd.grad(apply_delta(images, delta).sum(), delta)
    assert gradient.item() == 1.0  # the saturated pixel no longer moves


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_delta_has_the_norm_of_the_ball(norm):
    ball = make_ball(norm, 0.3)
    delta = random_delta((3, 8, 8), ball, torch.Generator().manual_seed(1))
    assert delta.shape == (1, 3, 8, 8)
    assert 0.2999 < float(ball.norm(delta)) <= 0.3


def test_random_delta_can_be_taken_from_inside():
    draw = torch.Generator().manual_seed(2)
    delta = random_delta((1, 8, 8), LinfBall(0.3), draw, surface=False)
    assert len(delta.abs().unique()) > 10
