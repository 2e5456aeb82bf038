"""A few held-out images for a person to look at."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bdaudit.records.base import Mode, Record

__all__ = ["Answer", "PictureColumn", "Pictures", "Png", "Thumbnail"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _check_png(png: str) -> str:
    try:
        content = base64.b64decode(png, validate=True)
    except binascii.Error as error:
        raise ValueError("a picture is not base64") from error
    if not content.startswith(_PNG_SIGNATURE):
        raise ValueError("a picture is not a PNG")
    return png


Png = Annotated[str, Field(max_length=100_000), AfterValidator(_check_png)]
"""A small PNG file, base64-encoded: nothing else can stand there, and nothing large."""


Answer = Literal["true_label", "target", "other"]


class Thumbnail(Record):
    """One image as the defended model was shown it, and what the model took it for.

    Attributes:
        png: The image, reduced to at most 96 pixels a side where it is larger.
        answer: Its true label, the attack's target, or another class.
    """

    png: Png
    answer: Answer


class PictureColumn(Record):
    """One held-out image in its three states."""

    true_label: int
    target_label: int
    clean: Thumbnail
    triggered: Thumbnail
    perturbed: Thumbnail


class Pictures(Record):
    """A few held-out images for a person to look at; no figure is made from them.

    Attributes:
        model: Who was asked.
        mode, norm, eps, delta_sha256: Of the attack whose perturbation is shown.
        perturbation: The perturbation alone, mid-grey where it is 0.
        gain: By how much it is enlarged for showing.
        columns: The images, the first of as many different classes as there are: not chosen by
            what the attack did to them.
    """

    model: str
    mode: Mode
    norm: Literal["linf", "l2"]
    eps: float = Field(ge=0.0)
    delta_sha256: str
    perturbation: Png
    gain: float = Field(gt=0.0)
    columns: tuple[PictureColumn, ...] = Field(max_length=8)
