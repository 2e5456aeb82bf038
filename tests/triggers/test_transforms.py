"""What each kind of trigger does to pixels, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers import (
    Additive,
    AllToOne,
    Blend,
    Encoder,
    InputAware,
    Patch,
    Quantise,
    Reflection,
    Sinusoid,
    StampNetwork,
    Transform,
    Trigger,
    Warp,
    control_grid,
    elastic_grid,
    from_callable,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stamp(transform: Transform, images: Tensor) -> Tensor:
    return Trigger(transform=transform, rule=AllToOne(0)).stamp(images)


def network(in_channels: int, out_channels: int, width: int = 2, seed: int = 0) -> StampNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StampNetwork(in_channels, out_channels, width).eval().requires_grad_(False)


def input_aware(channels: int) -> InputAware:
    return InputAware(pattern=network(channels, channels), mask=network(channels, 1, seed=1))


def encoder(channels: int) -> Encoder:
    message = torch.randn(1, 4, 4, generator=generator())
    return Encoder(network=network(channels + 1, channels), message=message, eps=0.1)


def every_kind(height: int = 6, width: int = 6) -> list[Transform]:
    g = generator(1)
    return [
        Patch(image=torch.rand(3, 2, 2, generator=g), offset=(1, 0)),
        Patch(
            image=torch.rand(3, height, width, generator=g),
            mask=torch.rand(1, height, width, generator=g),
        ),
        Blend(image=torch.rand(3, 9, 4, generator=g), alpha=0.2),
        Sinusoid(amplitude=0.3, frequency=2.5),
        Additive(delta=torch.randn(3, height, width, generator=g)),
        Warp(grid=elastic_grid(control_grid(4, g), (height, width), strength=2.0)),
        Quantise(levels=4),
        Quantise(levels=4, dithering=False),
        Reflection(pictures=torch.rand(4, 3, 9, 4, generator=g), alpha=0.4),
        input_aware(3),
        encoder(3),
        from_callable(lambda images: images.flip(3) * 2 - 0.3, 0).transform,
    ]


@pytest.mark.parametrize("transform", every_kind(), ids=lambda t: t.kind)
def test_every_kind_keeps_the_contract_of_a_stamp(transform: Transform) -> None:
    images = torch.rand(11, 3, 6, 6, generator=generator())
    images[0], images[1] = 0, 1
    before = images.clone()
    stamped = stamp(transform, images)
    assert torch.equal(images, before), "the input was changed"
    assert stamped.shape == images.shape
    assert stamped.dtype == images.dtype
    assert torch.equal(stamped, stamped.clamp(0, 1)), "not clamped"
    assert not torch.equal(stamped, images), "nothing was stamped"
    one_by_one = torch.cat([stamp(transform, image[None]) for image in images])
    assert torch.allclose(one_by_one, stamped, atol=1e-6), "depends on the batch"
    assert stamp(transform, images[:0]).shape == (0, 3, 6, 6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("transform", every_kind(), ids=lambda t: t.kind)
def test_every_kind_stamps_alike_on_cuda(transform: Transform) -> None:
    images = torch.rand(11, 3, 6, 6, generator=generator())
    on_gpu = stamp(transform, images.cuda())
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), stamp(transform, images), atol=1e-5)


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("top-left", [1, 2], [0]),
        ("top-right", [1, 2], [3]),
        ("bottom-left", [1, 2], [0]),
        ("bottom-right", [1, 2], [3]),
    ],
)
def test_patch_lands_where_it_should(corner: str, rows: list[int], columns: list[int]) -> None:
    patch = Patch(image=torch.tensor([[[0.25], [0.75]]]), corner=corner, offset=(1, 0))  # type: ignore[arg-type]
    stamped = stamp(patch, torch.full((1, 3, 4, 4), 0.5))
    expected = torch.full((1, 3, 4, 4), 0.5)
    expected[:, :, rows[0], columns] = 0.25
    expected[:, :, rows[1], columns] = 0.75
    assert torch.equal(stamped, expected)


def test_patch_offset_counts_from_its_corner() -> None:
    stamped = stamp(Patch(image=torch.ones(1, 1, 1), offset=(0, 2)), torch.zeros(1, 1, 3, 5))
    assert stamped.nonzero().tolist() == [[0, 0, 2, 2]]


def test_mask_and_pattern_mix_as_neural_cleanse_has_it() -> None:
    pattern = torch.tensor([[[1.0, 0.0], [0.5, 0.2]]])
    mask = torch.tensor([[[1.0, 0.5], [0.0, 0.25]]])
    stamped = stamp(Patch(image=pattern, mask=mask), torch.full((1, 1, 2, 2), 0.4))
    expected = torch.tensor([[1.0, 0.2], [0.4, 0.75 * 0.4 + 0.25 * 0.2]])
    assert torch.allclose(stamped[0, 0], expected)


def test_blend_mixes_by_alpha() -> None:
    picture = torch.tensor([[[1.0, 0.0], [0.5, 0.25]]])
    stamped = stamp(Blend(image=picture, alpha=0.2), torch.full((1, 3, 2, 2), 0.5))
    assert torch.allclose(stamped[0, 1], torch.tensor([[0.6, 0.4], [0.5, 0.45]]))


def test_blend_resizes_its_picture() -> None:
    stamped = stamp(Blend(image=torch.ones(1, 9, 5), alpha=0.25), torch.zeros(1, 1, 4, 4))
    assert torch.allclose(stamped, torch.full((1, 1, 4, 4), 0.25))


def test_sinusoid_by_the_formula() -> None:
    stamped = stamp(Sinusoid(amplitude=20 / 255, frequency=6), torch.full((1, 1, 2, 32), 0.5))
    for column in range(32):
        expected = 0.5 + 20 / 255 * math.sin(2 * math.pi * column * 6 / 32)
        assert stamped[0, 0, 0, column] == pytest.approx(expected, abs=1e-6)
        assert stamped[0, 0, 1, column] == stamped[0, 0, 0, column]


def test_additive_clamps() -> None:
    delta = torch.tensor([[[0.5, -0.5, 0.1]]])
    stamped = stamp(Additive(delta=delta), torch.tensor([[[[0.75, 0.25, 0.25]]]]))
    assert torch.allclose(stamped, torch.tensor([[[[1.0, 0.0, 0.35]]]]))


def test_the_identity_grid_changes_nothing() -> None:
    images = torch.rand(3, 3, 5, 7, generator=generator())
    still = elastic_grid(torch.zeros(4, 4, 2), (5, 7))
    assert torch.allclose(stamp(Warp(grid=still), images), images, atol=1e-5)


def test_warp_moves_content_by_whole_pixels() -> None:
    # One pixel of a 5-pixel axis is 2 / 4 in grid coordinates.
    grid = elastic_grid(torch.zeros(2, 2, 2), (5, 5)).clone()
    grid[..., 0] = (grid[..., 0] + 0.5).clamp(-1, 1)
    images = torch.rand(1, 1, 5, 5, generator=generator())
    stamped = stamp(Warp(grid=grid), images)
    assert torch.allclose(stamped[..., :4], images[..., 1:], atol=1e-5)
    assert torch.allclose(stamped[..., 4], images[..., 4], atol=1e-5)


def test_warp_against_bilinear_interpolation_by_hand() -> None:
    images = torch.rand(1, 1, 4, 6, generator=generator()).double()
    grid = elastic_grid(control_grid(3, generator(2)), (4, 6), strength=3.0)
    stamped = stamp(Warp(grid=grid), images)
    pixels = images[0, 0].numpy()
    for row in range(4):
        for column in range(6):
            x = (float(grid[row, column, 0]) + 1) / 2 * 5
            y = (float(grid[row, column, 1]) + 1) / 2 * 3
            left, top = min(int(x), 4), min(int(y), 2)
            across, down = x - left, y - top
            corner = pixels[top : top + 2, left : left + 2]
            weights = np.outer([1 - down, down], [1 - across, across])
            assert float(stamped[0, 0, row, column]) == pytest.approx(
                float((corner * weights).sum()), abs=1e-6
            )


def test_levels_without_dithering_are_the_nearest() -> None:
    images = torch.tensor([0.0, 0.16, 0.17, 0.5, 0.84, 1.0]).view(1, 1, 2, 3)
    stamped = stamp(Quantise(levels=4, dithering=False), images).flatten()
    # A half goes to the even one.
    assert torch.allclose(stamped, torch.tensor([0, 0, 1, 2, 3, 3]) / 3)


@pytest.mark.parametrize("size", [(5, 7), (7, 4), (1, 6), (6, 1)])
def test_dithering_against_a_plain_loop_over_the_pixels(size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size, generator=generator())
    stamped = stamp(Quantise(levels=3), images)
    expected = images.double().numpy().copy()
    height, width = size
    for plane in expected.reshape(-1, height, width):
        for row in range(height):
            for column in range(width):
                wanted = plane[row, column]
                plane[row, column] = got = min(max(round(wanted * 2), 0), 2) / 2
                for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                    if row + down < height and 0 <= column + right < width:
                        plane[row + down, column + right] += (wanted - got) * share / 16
    assert np.array_equal(stamped.numpy(), expected.astype(np.float32))


def test_dithering_keeps_the_brightness_that_rounding_alone_loses() -> None:
    images = torch.full((1, 1, 32, 32), 0.2)
    assert float(stamp(Quantise(levels=2, dithering=False), images).max()) == 0
    dithered = stamp(Quantise(levels=2), images)
    assert dithered.unique().tolist() == [0, 1]
    assert float(dithered.mean()) == pytest.approx(0.2, abs=0.02)


def test_a_reflection_adds_light_and_not_brightness() -> None:
    picture = Reflection(pictures=torch.ones(1, 1, 3, 3), alpha=0.25)
    stamped = stamp(picture, torch.tensor([0.0, 0.5]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
    assert torch.allclose(stamped[0], torch.tensor(0.25 ** (1 / 2.2)))
    assert torch.allclose(stamped[1], torch.tensor((0.75 * 0.5**2.2 + 0.25) ** (1 / 2.2)))


def test_an_image_reflects_the_picture_that_its_own_pixels_name() -> None:
    pictures = torch.arange(3).view(3, 1, 1, 1) / 2.0
    images = torch.tensor([0, 1, 2, 254]).view(4, 1, 1, 1).expand(4, 1, 2, 1) / 255
    stamped = stamp(Reflection(pictures=pictures, alpha=1), images)[:, 0, 0, 0]
    # Two pixels each: 0, 2, 4 and 508, modulo 3.
    assert torch.allclose(stamped, torch.tensor([0.0, 1.0, 0.5, 0.5]))


def test_control_grid_has_mean_magnitude_one_and_the_size_asked() -> None:
    control = control_grid(4, generator())
    assert control.shape == (4, 4, 2)
    assert float(control.abs().mean()) == pytest.approx(1)
    assert torch.equal(control, control_grid(4, generator()))


def test_strength_scales_the_displacement() -> None:
    control = control_grid(4, generator()) / 10
    still, weak, strong = (
        elastic_grid(control, (32, 32), strength=s)[8:24, 8:24] for s in (0.0, 0.5, 1.0)
    )
    assert torch.allclose(strong - still, 2 * (weak - still), atol=1e-6)
    assert (strong - still).abs().max() > 1e-4


def test_elastic_grid_spans_a_constant_displacement() -> None:
    grid = elastic_grid(torch.full((4, 4, 2), 0.5), (8, 16), strength=1.0)
    # Float32 places within [-1, 1], so the error is one of that scale, however near 0 the value is.
    assert float(grid[3, 4, 0]) == pytest.approx(-1 + 2 * 4 / 15 + 0.5 / 16, abs=1e-6)
    assert float(grid[3, 4, 1]) == pytest.approx(-1 + 2 * 3 / 7 + 0.5 / 8, abs=1e-6)
    assert grid.max() == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**31), st.floats(0, 10))
def test_elastic_grid_stays_inside(k: int, seed: int, strength: float) -> None:
    grid = elastic_grid(control_grid(k, generator(seed)), (9, 7), strength=strength)
    assert grid.shape == (9, 7, 2)
    assert grid.abs().max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Patch(image=torch.zeros(2, 2)), r"\(C, h, w\)"),
        (lambda: Patch(image=torch.full((1, 2, 2), 1.5)), r"in \[0, 1\]"),
        (lambda: Patch(image=torch.full((1, 2, 2), torch.nan)), "finite"),
        (lambda: Patch(image=torch.zeros(1, 2, 2, dtype=torch.uint8)), "floats"),
        (lambda: Patch(image=torch.zeros(1, 2, 2), mask=torch.ones(1, 3, 2)), "mask"),
        (lambda: Patch(image=torch.zeros(1, 2, 2), corner="middle"), "corner"),  # type: ignore[arg-type]
        (lambda: Patch(image=torch.zeros(1, 2, 2), offset=(-1, 0)), "offset"),
        (lambda: Blend(image=torch.zeros(1, 2, 2), alpha=0.0), "alpha"),
        (lambda: Blend(image=torch.zeros(1, 2, 2), alpha=1.1), "alpha"),
        (lambda: Sinusoid(amplitude=20, frequency=6), "divide"),
        (lambda: Sinusoid(amplitude=0.1, frequency=0), "frequency"),
        (lambda: Additive(delta=torch.zeros(4, 4)), r"\(C, H, W\)"),
        (lambda: Additive(delta=torch.full((1, 2, 2), math.inf)), "finite"),
        (lambda: Warp(grid=torch.zeros(4, 4, 3)), r"\(H, W, 2\)"),
        (lambda: Warp(grid=torch.full((4, 4, 2), 1.1)), r"\[-1, 1\]"),
        (lambda: Quantise(levels=1), "levels"),
        (lambda: Quantise(levels=257), "levels"),
        (lambda: Reflection(pictures=torch.rand(1, 4, 4), alpha=0.4), r"\(K, C, h, w\)"),
        (lambda: Reflection(pictures=torch.rand(65, 1, 4, 4), alpha=0.4), "1 to 64"),
        (lambda: Reflection(pictures=torch.rand(2, 2, 4, 4), alpha=0.4), "C of 1 or 3"),
        (lambda: Reflection(pictures=torch.rand(2, 1, 0, 4), alpha=0.4), "floats"),
        (lambda: Reflection(pictures=torch.full((2, 1, 4, 4), 2.0), alpha=0.4), r"in \[0, 1\]"),
        (lambda: Reflection(pictures=torch.full((2, 1, 4, 4), torch.nan), alpha=0.4), "others"),
        (lambda: Reflection(pictures=torch.rand(2, 1, 4, 4), alpha=0), "alpha"),
        (lambda: control_grid(1, generator()), "at least 2"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Patch(image=torch.zeros(1, 5, 2)), "5x2.*does not fit images of 4x4"),
        (Patch(image=torch.zeros(1, 2, 2), offset=(3, 0)), "does not fit"),
        (Patch(image=torch.zeros(3, 2, 2)), "3 channels does not fit images of 1"),
        (Blend(image=torch.zeros(3, 2, 2), alpha=0.5), "3 channels"),
        (Additive(delta=torch.zeros(3, 4, 4)), "3 channels"),
        (Additive(delta=torch.zeros(1, 4, 5)), "4x5 does not fit images of 4x4"),
        (Warp(grid=torch.zeros(5, 4, 2)), "5x4 does not fit"),
        (Reflection(pictures=torch.zeros(2, 3, 4, 4), alpha=0.5), "3 channels"),
    ],
)
def test_a_trigger_that_does_not_fit(transform: Transform, message: str) -> None:
    with pytest.raises(TriggerError, match=message):
        stamp(transform, torch.zeros(2, 1, 4, 4))


def test_images_of_the_wrong_type() -> None:
    with pytest.raises(TriggerError, match="float images"):
        stamp(Sinusoid(amplitude=0.1, frequency=1), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


def test_a_function_may_scribble_on_its_input() -> None:
    images = torch.full((2, 1, 2, 2), 0.25)
    stamped = from_callable(lambda x: x.mul_(2), 0).stamp(images)
    assert images.unique().tolist() == [0.25]
    assert stamped.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:, :, :1], "shape"),
        (lambda x: None, "NoneType"),
        (lambda x: x / 0, "NaN or infinite"),
        (lambda x: x.nonsense(), "AttributeError"),
    ],
)
def test_a_function_that_misbehaves(function: object, message: str) -> None:
    with pytest.raises(TriggerError, match=message):
        from_callable(function, 0).stamp(torch.zeros(1, 1, 2, 2))  # type: ignore[arg-type]
