"""Asking about images: little memory, scores that are no numbers, what a card is sent."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor, nn

from bdaudit.errors import NumericsError
from bdaudit.measuring.compute import Compute
from bdaudit.scoring import predict, predict_logits
from tests.pretend import pretended_card, traffic

IMAGES = torch.rand(23, 1, 4, 4, generator=torch.Generator().manual_seed(0))
DELTA = torch.full((1, 1, 4, 4), 0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)


def test_too_little_memory_halves_the_batch_that_failed_and_those_after_it() -> None:
    net, sizes = network(), []

    def limited(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("too much")
        return net(images)

    found = predict_logits(limited, IMAGES, batch_size=16, delta=DELTA)
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 3]
    torch.testing.assert_close(found, net((IMAGES + DELTA).clamp(0, 1)))
    sizes.clear()
    assert torch.equal(predict(limited, IMAGES, batch_size=16), net(IMAGES).argmax(1))
    assert sum(size for size in sizes if size <= 5) == len(IMAGES)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def never(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        predict(never, IMAGES, batch_size=4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 22])
def test_scores_that_are_not_finite_are_refused_in_every_batch(bad: float, place: int) -> None:
    marked = IMAGES.clone()
    marked[place] = 2.0

    def broken(images: Tensor) -> Tensor:
        return torch.where(images.mean((1, 2, 3))[:, None] > 1.5, bad, images.flatten(1))

    for ask in (predict, predict_logits):
        with pytest.raises(NumericsError, match="NaN or infinite"):
            ask(broken, marked, batch_size=6)
        ask(broken, IMAGES, batch_size=6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card, which is not pretended")
def test_images_are_sent_to_a_card_once_and_it_is_waited_for_at_the_end() -> None:
    expected = predict(network(), IMAGES, batch_size=6, delta=DELTA)
    with pretended_card() as card:
        net, compute = network().to(card), Compute(card, 0, 6)
        images, waits = IMAGES.clone(), []
        for batch_size in (6, 6, 23):
            with traffic() as seen:
                found = predict(
                    net, compute.sent(images), batch_size=batch_size, device=card, delta=DELTA
                )
            waits.append(len(seen.waits))
            assert torch.equal(found, expected)
            assert seen.sent.count(tuple(IMAGES.shape)) == (1 if len(waits) == 1 else 0)
        assert waits == [2, 2, 2]
        assert len(compute._sent) == 1
        del images
        gc.collect()
        assert compute._sent == {}, "the card's copy goes with the images"


def test_on_a_processor_images_stay_as_they_are() -> None:
    assert Compute(torch.device("cpu"), 0, 6).sent(IMAGES) is IMAGES
