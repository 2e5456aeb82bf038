"""Image files and tensors of images: decoding, channels, size.

Everything leaves here as float32 in [0, 1], channels first. Files are taken to be hostile: only
plain raster formats are tried (Pillow would hand an EPS to Ghostscript), and an image whose header
promises more pixels than Pillow's limit is refused before a pixel is decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bdaudit.errors import DataError

__all__ = ["EXTENSIONS", "ImageShape", "fit_images", "read_image", "read_images"]

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
_SHOWN = 3
# ITU-R BT.601 luma, the weights Pillow's own conversion to grey uses.
_LUMA = (0.299, 0.587, 0.114)


def read_image(path: Path) -> Tensor:
    """Decode one image file.

    Args:
        path: A file in one of `FORMATS`; 8 bits a channel. Of an animation the first frame is
            taken, an alpha channel is dropped, and orientation tags are not applied (training
            pipelines do not apply them either).

    Returns:
        (C, H, W) float32 in [0, 1]; C is 1 for grey files and 3 for all others.

    Raises:
        DataError: The file is missing, is no such image, is truncated, holds more than 8 bits a
            channel, or promises more pixels than Pillow's decompression-bomb limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                pixels = np.array(_eight_bit(image))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    # A decoder fed hostile bytes raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise DataError(
            f"{path}: expected an image, got {type(error).__name__}: {error}"
        ) from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in {"1", "L", "LA", "La"}:
        return image.convert("L")
    if image.mode.startswith(("I", "F")):
        raise DataError(f"expected 8 bits a channel, got mode {image.mode}; convert it first")
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
        f"expected images of {channels} channel(s), got {given}; only grey and RGB are converted"
    )


def read_images(paths: Sequence[Path], image_shape: ImageShape | None) -> Tensor:
    """Decode many files into one tensor.

    Args:
        paths: At least one file.
        image_shape: (C, H, W) to bring each image to; `None` asks that all agree already.

    Returns:
        (N, C, H, W) float32 in [0, 1], in the order of `paths`.

    Raises:
        DataError: Some files do not open (the first are named, all are counted), or no shape was
            given and they differ.
    """
    images: list[Tensor] = []
    failures: list[str] = []
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            failures.append(str(error))
            continue
        # Fitted one by one: files of different sizes cannot share a batch, and the memory held
        # is that of the small images.
        images.append(image if image_shape is None else fit_images(image[None], image_shape)[0])
    if failures:
        raise DataError(
            f"{len(failures)} of {len(paths)} images cannot be read; first: "
            + "; ".join(failures[:_SHOWN])
        )
    _require_one_shape(images, paths)
    return torch.stack(images)


def _require_one_shape(images: Sequence[Tensor], paths: Sequence[Path]) -> None:
    first = images[0].shape
    for image, path in zip(images, paths, strict=True):
        if image.shape != first:
            raise DataError(
                f"{path}: expected (C, H, W) = {tuple(first)} as in {paths[0].name}, got "
                f"{tuple(image.shape)}; give the model's image shape so that all are brought to it"
            )
