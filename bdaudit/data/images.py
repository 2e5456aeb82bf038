"""Image files and tensors of images: decoding, channels, size.

Everything leaves here as float32 in [0, 1], channels first. Files are taken to be hostile: only
plain raster formats are tried (Pillow would hand an EPS to Ghostscript), and an image whose header
promises more pixels than are read is refused before a pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bdaudit.errors import DataError
from bdaudit.foundation.opening import PICTURE_BYTES, open_file

__all__ = [
    "EXTENSIONS",
    "Decoder",
    "ImageShape",
    "decode_image",
    "decode_stream",
    "fit_images",
    "fitting_notes",
    "gather_images",
    "read_image",
    "read_image_size",
    "read_images",
]

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

Decoder: TypeAlias = Callable[[], tuple[Tensor, tuple[str, ...]]]
"""Decodes one image, as `decode_image` does."""

_Seen = TypeVar("_Seen")

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
_SHOWN = 3
_MOST_PIXELS = 1 << 25
_MOST_SIDE = 1 << 15
_WIDE = ("10", "12", "14", "16", "24", "32")
_PLAIN_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"})
_ORIENTATION_TAG = 0x0112
_ALPHA = "are transparent in places; their alpha was dropped"
_FRAMES = "have several frames; only the first was read"
_ORIENTATION = "have an orientation tag, which was not applied"
_COLOURS = "were converted to RGB from another colour space"
_PROFILE = "have a colour profile other than sRGB, which was not applied"
_ODDITIES = (_ALPHA, _FRAMES, _ORIENTATION, _COLOURS, _PROFILE)
# ITU-R BT.601 luma, the weights Pillow's own conversion to grey uses.
_LUMA = (0.299, 0.587, 0.114)


def read_image(path: Path) -> Tensor:
    """Decode one image file, as `decode_image` does; what was left out of it is not said."""
    return decode_image(path)[0]


def read_image_size(path: Path, *, within: Path | None = None) -> tuple[int, int]:
    """Return the width and the height of an image file, by its header; nothing is decoded.

    Raises:
        DataError: As `decode_image`, for what can be told from the header.
    """
    with open_file(
        path, limit=PICTURE_BYTES, what="an image", error=DataError, within=within
    ) as stream:
        return _opened(stream, str(path), lambda image: image.size)


def decode_image(path: Path, *, within: Path | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Decode one image file.

    Args:
        path: A file in one of `FORMATS`; 8 bits a channel. Of an animation the first frame is
            taken, an alpha channel is dropped, and orientation tags are not applied (training
            pipelines do not apply them either).
        within: The folder that it must lie in.

    Returns:
        (C, H, W) float32 in [0, 1], C 1 for grey files and 3 for all others; and what of the file
        was dropped or converted, in the words of `_ODDITIES`.

    Raises:
        DataError: The file is missing, is no such image, is truncated, holds more than 8 bits a
            channel, or promises more pixels than are read.
    """
    with open_file(
        path, limit=PICTURE_BYTES, what="an image", error=DataError, within=within
    ) as stream:
        return decode_stream(stream, str(path))


def decode_stream(stream: IO[bytes], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Decode an encoded image as `decode_image` does.

    Args:
        stream: Its bytes, limited already.
        where: What it is called in messages.

    Raises:
        DataError: As `decode_image`.
    """
    pixels, oddities = _opened(stream, where, _pixels_of)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, oddities


def _pixels_of(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    _demand_eight_bits(image)
    oddities = _list_oddities(image)
    return np.array(_eight_bit(image)), oddities


def _opened(stream: IO[bytes], where: str, look: Callable[[Image.Image], _Seen]) -> _Seen:
    """Return what is seen in an encoded image, of which only the header is decoded so far."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=FORMATS) as image:
                _demand_size(image)
                return look(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    # A decoder fed hostile bytes raises OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise DataError(
            f"{where}: expected an image, got {type(error).__name__}: {error}"
        ) from error


def _demand_size(image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > _MOST_SIDE or width * height > _MOST_PIXELS:
        raise DataError(
            f"expected at most {_MOST_SIDE:,} pixels a side and {_MOST_PIXELS:,} in all, got "
            f"{width} x {height}"
        )


def _list_oddities(image: Image.Image) -> tuple[str, ...]:
    """Return what of an image is not read as it stands, before it is decoded."""
    found = []
    if getattr(image, "n_frames", 1) > 1:
        found.append(_FRAMES)
    if image.getexif().get(_ORIENTATION_TAG, 1) != 1:
        found.append(_ORIENTATION)
    if _is_transparent(image):
        found.append(_ALPHA)
    if image.mode not in _PLAIN_MODES:
        found.append(_COLOURS)
    profile = image.info.get("icc_profile")
    if profile and b"sRGB" not in profile:
        found.append(_PROFILE)
    return tuple(found)


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}:
        return bool(image.getchannel("A" if "A" in image.mode else "a").getextrema()[0] != 255)
    return "transparency" in image.info


def _demand_eight_bits(image: Image.Image) -> None:
    """Refuse more than 8 bits a channel, before anything of the image is decoded.

    Pillow opens colour of 16 bits as mode RGB and drops half of them; what its decoder is told says
    so: a raw mode such as "RGB;16B", or the greatest value of a PPM.
    """
    wide = image.mode.startswith(("I", "F"))
    for tile in getattr(image, "tile", ()):
        decoder, told = tile[0], tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if image.format == "BMP":
            continue  # its 16 bits are those of a pixel
        for part in told:
            raw_mode = isinstance(part, str) and any(f";{bits}" in part for bits in _WIDE)
            greatest = decoder.startswith("ppm") and isinstance(part, int) and part > 255
            wide = wide or raw_mode or greatest
    if wide:
        raise DataError(
            f"expected 8 bits a channel, got more (Pillow's mode {image.mode}); convert it first"
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in {"1", "L", "LA", "La"}:
        return image.convert("L")
    if image.mode == "P":
        # A palette with transparency warns unless it goes through an alpha channel.
        image = image.convert("RGBA")
    return image.convert("RGB")


def fit_images(images: Tensor, image_shape: ImageShape) -> Tensor:
    """Bring images to the channels and size a model takes.

    Args:
        images: (N, C, H, W) in [0, 1], C of 1 or 3.
        image_shape: Wanted (C', H', W').

    Returns:
        (N, C', H', W') in [0, 1]: grey repeated to three channels, colour weighed to luma
        (BT.601), resized bilinearly with antialiasing. `images` itself where nothing changes.

    Raises:
        DataError: The channels cannot be converted.
    """
    channels, height, width = image_shape
    if channels == height == 1 and tuple(images.shape[1:]) != tuple(image_shape):
        raise DataError(
            f"images of shape {tuple(images.shape[1:])} and a model of {tuple(image_shape)}: rows "
            "of a table are not resized; expected as many columns as the model takes"
        )
    if images.shape[1] != channels:
        images = _convert_channels(images, channels)
    if tuple(images.shape[-2:]) != (height, width):
        images = functional.interpolate(
            images, size=(height, width), mode="bilinear", antialias=True, align_corners=False
        ).clamp(0, 1)
    return images


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    given = images.shape[1]
    if (given, channels) == (1, 3):
        return images.expand(-1, 3, -1, -1).contiguous()
    if (given, channels) == (3, 1):
        luma = torch.tensor(_LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        return (images * luma).sum(dim=1, keepdim=True).clamp(0, 1)
    raise DataError(
        f"expected images with {channels} channels, got {given}; only grey and RGB are converted"
    )


def read_images(
    paths: Sequence[Path], image_shape: ImageShape | None, *, within: Path | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode many files into one tensor; as `gather_images`, of files that lie in `within`."""
    return gather_images(
        [(path.name, partial(decode_image, path, within=within)) for path in paths], image_shape
    )


def gather_images(
    decoders: Sequence[tuple[str, Decoder]], image_shape: ImageShape | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Decode many images into one tensor.

    Args:
        decoders: At least one name, with what decodes that image.
        image_shape: (C, H, W) to bring each image to; `None` asks that all agree already.

    Returns:
        (N, C, H, W) float32 in [0, 1], in the order given; and notes on what was dropped or
        converted, each with the number of images.

    Raises:
        DataError: Some do not open (the first are named, all are counted), or no shape was given
            and they differ.
    """
    images: list[Tensor] = []
    failures: list[str] = []
    odd: dict[str, list[str]] = {oddity: [] for oddity in _ODDITIES}
    shapes: Counter[tuple[int, ...]] = Counter()
    for name, decode in decoders:
        try:
            image, oddities = decode()
        except DataError as error:
            failures.append(str(error))
            continue
        for oddity in oddities:
            odd[oddity].append(name)
        shapes[tuple(image.shape)] += 1
        # Fitted one by one: files of different sizes cannot share a batch, and the memory held
        # is that of the small images.
        images.append(image if image_shape is None else fit_images(image[None], image_shape)[0])
    if failures:
        raise DataError(
            f"{len(failures)} of {len(decoders)} images cannot be read; first: "
            + "; ".join(failures[:_SHOWN])
        )
    _require_one_shape(images, [name for name, _ in decoders])
    notes = [
        f"{len(found)} of {len(decoders)} images {oddity} (first: {found[0]})"
        for oddity, found in odd.items()
        if found
    ]
    if image_shape is not None:
        notes += fitting_notes(shapes, image_shape)
    return torch.stack(images), tuple(notes)


def fitting_notes(shapes: Mapping[tuple[int, ...], int], image_shape: ImageShape) -> list[str]:
    """Return what `fit_images` did to images.

    Args:
        shapes: How many images there are of each (C, H, W).
        image_shape: What they were brought to.
    """
    total = sum(shapes.values())
    channels, height, width = image_shape
    recoloured = sum(n for shape, n in shapes.items() if shape[0] != channels)
    resized = Counter[tuple[int, ...]]()
    for shape, n in shapes.items():
        if shape[1:] != (height, width):
            resized[shape[1:]] += n
    notes = []
    if recoloured:
        to = "grey repeated to 3 channels" if channels == 3 else "colour weighed to grey"
        notes.append(f"{recoloured} of {total} images: {to}, as the model takes {channels}")
    if resized:
        (rows, columns), _ = resized.most_common(1)[0]
        often = "" if len(resized) == 1 else f" and {len(resized) - 1} other sizes"
        notes.append(
            f"{resized.total()} of {total} images resized from {rows}x{columns}{often} to "
            f"{height}x{width}"
        )
    return notes


def _require_one_shape(images: Sequence[Tensor], names: Sequence[str]) -> None:
    first = images[0].shape
    for image, name in zip(images, names, strict=True):
        if image.shape != first:
            raise DataError(
                f"{name}: expected (C, H, W) = {tuple(first)} as in {names[0]}, got "
                f"{tuple(image.shape)}; give the model's image shape so that all are brought to it"
            )
