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

from bdaudit.data import load_sample
from bdaudit.data.images import decode_image, fit_images, read_image, read_images
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
    assert read_images(paths, (3, 4, 4))[0].shape == (2, 3, 4, 4)


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


def said(path: Path) -> str:
    return "; ".join(decode_image(path)[1])


def test_what_is_left_out_of_a_picture_is_said(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    red.save(tmp_path / "plain.png")
    assert said(tmp_path / "plain.png") == ""
    opaque, clear = red.convert("RGBA"), red.convert("RGBA")
    clear.putpixel((0, 0), (255, 0, 0, 10))
    opaque.save(tmp_path / "opaque.png")
    clear.save(tmp_path / "clear.png")
    assert said(tmp_path / "opaque.png") == ""
    assert "alpha" in said(tmp_path / "clear.png")
    red.save(tmp_path / "two.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    assert "several frames" in said(tmp_path / "two.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    red.save(tmp_path / "turned.jpg", exif=turned)
    assert "orientation" in said(tmp_path / "turned.jpg")
    red.convert("CMYK").save(tmp_path / "print.jpg")
    assert "colour space" in said(tmp_path / "print.jpg")
    red.save(tmp_path / "profile.png", icc_profile=b"\0" * 40 + b"Adobe RGB")
    assert "profile" in said(tmp_path / "profile.png")


def test_notes_count_the_images(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image = Image.new("RGBA", (6, 4), (1, 2, 3, 4 if name == "cat" else 255))
        image.save(tmp_path / name / "a.png")
    notes = load_sample(tmp_path, image_shape=(1, 8, 8)).notes
    assert any(note.startswith("1 of 2 images are transparent") for note in notes)
    assert "2 of 2 images: colour weighed to grey, as the model takes 1" in notes
    assert "2 of 2 images resized from 4x6 to 8x8" in notes


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """Write the header of a PNG and no pixels worth the name."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"\0" * min(1000, height * (1 + width * depth // 8 * 3)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (png(2, 2, 16, 2), "8 bits"),
        (png(2, 2, 16, 6), "8 bits"),
        (png(2, 2, 16, 4), "8 bits"),
        (b"P6 1 1 65535\n" + b"\0\1" * 3, "8 bits"),
        (png(1, 80_000_000, 8, 2), "pixels a side"),
        (png(30_000, 30_000, 8, 2), "image"),
        (png(8_000, 8_000, 8, 2), "pixels a side"),
    ],
)
def test_pictures_of_too_many_bits_or_pixels(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_image(tmp_path / "a.png")


def test_what_pillow_reads_whole_is_not_refused(tmp_path: Path) -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for name in ("a.bmp", "a.ppm", "a.tif", "a.webp", "a.gif", "a.jpg"):
        red.save(tmp_path / name)
        assert said(tmp_path / name) == ""
    (tmp_path / "b.ppm").write_bytes(b"P6 1 1 255\n\xff\0\0")
    assert read_image(tmp_path / "b.ppm").flatten().tolist() == [1.0, 0.0, 0.0]
