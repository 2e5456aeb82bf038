"""Shifts and flips against plain slicing of a padded image."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bdaudit.defenses.augmentation import shift_and_flip
from bdaudit.detection import is_marked, mark


def _possible(image, reach, *, flip):
    """Every picture that `image` may become, by slicing."""
    _, height, width = image.shape
    sources = [image, image.flip(2)] if flip else [image]
    return [
        functional.pad(source, (reach,) * 4)[:, down : down + height, right : right + width]
        for source in sources
        for down in range(2 * reach + 1)
        for right in range(2 * reach + 1)
    ]


@given(
    st.integers(0, 10**6), st.integers(3, 7), st.integers(3, 7), st.integers(1, 3), st.booleans()
)
def test_every_image_becomes_a_shifted_picture_of_itself(seed, height, width, channels, flip):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand((5, channels, height, width), generator=draw)
    max_shift = 1 / min(height, width)
    moved = shift_and_flip(images, max_shift=max_shift, flip=flip, generator=draw)
    assert moved.shape == images.shape
    # Not merely `is_contiguous`, which one channel is in either order.
    assert moved.stride() == torch.empty(images.shape).stride()
    for image, result in zip(images, moved, strict=True):
        assert any(torch.equal(result, wanted) for wanted in _possible(image, 1, flip=flip))


def test_all_shifts_and_flips_occur():
    image = torch.rand((1, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    moved = shift_and_flip(
        image.expand(600, -1, -1, -1),
        max_shift=0.2,
        flip=True,
        generator=torch.Generator().manual_seed(1),
    )
    possible = _possible(image[0], 1, flip=True)
    counts = [sum(torch.equal(result, wanted) for result in moved) for wanted in possible]
    assert sum(counts) == 600
    assert min(counts) > 10  # 33 expected of each of 18


def test_no_shift_and_no_flip_leaves_images_alone():
    images = torch.rand((4, 3, 6, 5))
    moved = shift_and_flip(images, max_shift=0.0, flip=False, generator=torch.Generator())
    assert torch.equal(moved, images)


def test_rows_of_a_table_are_neither_shifted_nor_mirrored():
    rows = torch.rand((4, 1, 1, 6))
    moved = shift_and_flip(rows, max_shift=0.5, flip=True, generator=torch.Generator())
    assert torch.equal(moved, rows)
    assert moved.data_ptr() != rows.data_ptr()


@given(st.integers(0, 10**6), st.booleans())
def test_the_box_of_a_marked_image_moves_along_and_is_never_cut(seed, flip):
    draw = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (8, 2), generator=draw)
    sides = torch.randint(1, 5, (8, 2), generator=draw)
    boxes = torch.cat((corners, corners + sides), dim=1).float()
    images = mark(0.1 + 0.8 * torch.rand((8, 3, 9, 10), generator=draw), boxes)
    moved = shift_and_flip(images, max_shift=0.4, flip=flip, generator=draw)
    assert is_marked(moved)
    assert not (moved[:, 3] * (moved[:, :3] == 0).all(dim=1)).any()  # what is shifted in
    for before, after in zip(images, moved, strict=True):
        object_, there = (one[:3, one[3] > 0] for one in (before, after))
        assert torch.equal(there.sort(dim=1).values, object_.sort(dim=1).values)
