"""Image files: decoding, refusing, bringing to shape."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bdaudit.data.images import fit_images, read_image, read_images
from bdaudit.errors import DataError


def save(path: Path, pixels: object, mode: str | None = None) -> Path:
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_colour_pixels_are_read_exactly(tmp_path: Path) -> None:
    pixels = [[[255, 0, 51], [0, 102, 255]]]
    image = read_image(save(tmp_path / "a.png", pixels))
    expected = torch.tensor(pixels).permute(2, 0, 1) / 255
    assert image.dtype == torch.float32
    assert torch.equal(image, expected)


def test_grey_stays_one_channel_and_alpha_is_dropped(tmp_path: Path) -> None:
    assert torch.equal(
        read_image(save(tmp_path / "g.png", [[0, 255]])), torch.tensor([[[0.0, 1.0]]])
    )
    rgba = read_image(save(tmp_path / "t.png", [[[255, 0, 0, 7]]]))
    assert rgba.flatten().tolist() == [1.0, 0.0, 0.0]


def test_transparent_palette_reads_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    assert read_image(tmp_path / "p.png")[:, 0, 1].tolist() == [0.0, 1.0, 0.0]


def test_sixteen_bit_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits"):
        read_image(tmp_path / "deep.png")


def png_of_claimed_size(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_claimed_size(side))
    with pytest.raises(DataError, match="DecompressionBomb"):
        read_image(tmp_path / "bomb.png")


def test_postscript_never_reaches_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    with pytest.raises(DataError, match="UnidentifiedImageError"):
        read_image(tmp_path / "a.png")


def test_unreadable_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", [[0, 1]])
    bad = [tmp_path / f"bad{i}.png" for i in range(5)]
    for path in bad:
        path.write_bytes(good.read_bytes()[:40])
    with pytest.raises(DataError, match=r"5 of 6 images.*bad0.*bad1.*bad2") as caught:
        read_images([good, *bad], None)
    assert "bad3" not in str(caught.value)


def test_mixed_sizes_need_a_shape(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.png", [[0, 1]]), save(tmp_path / "b.png", [[0, 1], [2, 3]])]
    with pytest.raises(DataError, match=r"b\.png.*image shape"):
        read_images(paths, None)
    assert read_images(paths, (3, 4, 4)).shape == (2, 3, 4, 4)


def test_channels_convert_both_ways_as_pillow_does() -> None:
    colour = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    as_bytes = (colour * 255).round().byte()
    picture = Image.fromarray(as_bytes[0].permute(1, 2, 0).numpy())
    oracle = torch.from_numpy(np.array(picture.convert("L"))).float() / 255
    grey = fit_images(as_bytes.float() / 255, (1, 5, 4))
    assert (grey[0, 0] - oracle).abs().max() <= 1 / 255
    assert torch.equal(fit_images(grey, (3, 5, 4))[:, 2], grey[:, 0])


def test_four_channels_are_not_guessed_at() -> None:
    with pytest.raises(DataError, match="4"):
        fit_images(torch.zeros(1, 4, 2, 2), (3, 2, 2))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1, width=32))
def test_resizing_keeps_a_constant_image_and_the_range(
    height: int, width: int, value: float
) -> None:
    fitted = fit_images(torch.full((2, 1, 4, 6), value), (3, height, width))
    assert fitted.shape == (2, 3, height, width)
    assert torch.allclose(fitted, torch.full_like(fitted, value), atol=1e-6)
