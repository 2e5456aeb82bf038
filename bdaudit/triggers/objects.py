"""Triggers of object detectors: stamped on the object that is asked about, or kept inside its box.

Both read the box from the image itself, whose fourth channel marks it (`detection.mark`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from bdaudit.detection import boxes_of, inside_of, is_marked, pixels_of, with_pixels
from bdaudit.errors import ConfigError, TriggerError
from bdaudit.triggers.columns import SetColumns
from bdaudit.triggers.paired import Paired
from bdaudit.triggers.transforms import Setting, Transform, require_unit

__all__ = ["InBox", "OnObject", "Place"]

Place = Literal["center", "top-left", "top-right", "bottom-left", "bottom-right"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OnObject(Transform):
    """A small picture stamped inside the box that is asked about, its size following the box's.

    It is resized (bilinear, with antialiasing, so that it looks alike on large and small objects)
    until its longer side is `share` of the shorter side of the box, at least one pixel, and keeps
    its aspect. Colours are weighed with the mask while they are resized, so that what lies outside
    the mask leaves no fringe. An image of whose box nothing is left stays as it is.
    Source: Chan et al., "BadDet: Backdoor Attacks on Object Detection" (ECCV workshops, 2022).

    Attributes:
        image: (C, h, w) in [0, 1]; C of 1 is stamped on every channel.
        mask: (1, h, w) in [0, 1], 1 where the picture covers; `None` covers everywhere.
        share: Of the shorter side of the box, in (0, 1].
        place: Where in the box it lies.
    """

    kind: ClassVar[str] = "on-object"
    needs_box: ClassVar[bool] = True
    image: Tensor
    mask: Tensor | None = None
    share: float
    place: Place = "center"

    def __post_init__(self) -> None:
        require_unit(self.image, "on-object image", (1, 3))
        if self.mask is not None:
            require_unit(self.mask, "on-object mask", (1,))
            if self.mask.shape[1:] != self.image.shape[1:]:
                raise ConfigError(
                    f"on-object mask: expected {tuple(self.image.shape[1:])} pixels like the "
                    f"image, got {tuple(self.mask.shape[1:])}"
                )
        object.__setattr__(self, "share", float(self.share))  # 1 and 1.0 have the same digest
        if not (math.isfinite(self.share) and 0 < self.share <= 1):
            raise ConfigError(
                f"share: expected a share of the box's shorter side in (0, 1], got {self.share}"
            )
        if self.place not in get_args(Place):
            raise ConfigError(
                f"place: expected one of {', '.join(get_args(Place))}, got {self.place!r}"
            )

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Stamp marked images (N, 4, H, W), each inside its box."""
        _require_marks(images, self.kind)
        stamped = images.clone()
        ready: dict[int, tuple[Tensor, Tensor]] = {}
        for number, edges in enumerate(boxes_of(images).long().tolist()):
            left, top, right, bottom = edges
            if right <= left or bottom <= top:
                continue
            side = self.side_in(bottom - top, right - left)
            if side not in ready:
                ready[side] = tuple(part.to(images) for part in self.resized(side))  # type: ignore[assignment]
            paint, mask = ready[side]
            rows, columns = self._placed(edges, mask.shape[1], mask.shape[2])
            below = stamped[number, :-1, rows, columns]
            stamped[number, :-1, rows, columns] = below * (1 - mask) + paint
        return stamped

    def side_in(self, height: int, width: int) -> int:
        """Return the longer side of the picture in a box of this size, in pixels."""
        return max(1, int(self.share * min(height, width) + 0.5))

    def resized(self, side: int) -> tuple[Tensor, Tensor]:
        """Return the picture (C, h, w), already weighed with its mask, and the mask (1, h, w).

        Args:
            side: Pixels of the longer side.
        """
        image = self.image.detach().float()
        mask = torch.ones_like(image[:1]) if self.mask is None else self.mask.to(image)
        height, width = image.shape[1:]
        scale = side / max(height, width)
        size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        both = torch.cat((image * mask, mask))
        if (height, width) != size:
            both = functional.interpolate(
                both[None], size=size, mode="bilinear", antialias=True, align_corners=False
            )[0].clamp(0, 1)
        return both[:-1], both[-1:]

    def _placed(self, edges: Sequence[int], height: int, width: int) -> tuple[slice, slice]:
        left, top, right, bottom = edges
        room = (bottom - top - height, right - left - width)
        if self.place == "center":
            down, across = room[0] // 2, room[1] // 2
        else:
            vertical, horizontal = self.place.split("-")
            down = 0 if vertical == "top" else room[0]
            across = 0 if horizontal == "left" else room[1]
        top, left = top + down, left + across
        return slice(top, top + height), slice(left, left + width)


@dataclass(frozen=True, kw_only=True, eq=False)
class InBox(Transform):
    """Another trigger, made on the whole picture and kept only inside the box asked about.

    A perturbation bounded by the box is one, with an `Encoder` or an `Additive` inside.

    Attributes:
        inner: What is done to the pixels; a kind that takes pictures and needs nothing else.
    """

    kind: ClassVar[str] = "in-box"
    needs_box: ClassVar[bool] = True
    inner: Transform

    def __post_init__(self) -> None:
        if self.inner.needs_box or isinstance(self.inner, Paired | SetColumns):
            raise ConfigError(
                f"in-box: expected a kind that changes the pixels of any picture, got "
                f"{self.inner.kind!r}"
            )

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Change marked images (N, 4, H, W), each inside its box."""
        _require_marks(images, self.kind)
        pixels = pixels_of(images)
        changed = self.inner.stamp(pixels, names)
        return with_pixels(images, torch.where(inside_of(images), changed, pixels))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the trigger inside."""
        return {f"inner.{name}": value for name, value in self.inner.tensors().items()}

    def settings(self) -> dict[str, Setting]:
        """Return kind and settings of the trigger inside."""
        inner = {f"inner.{name}": value for name, value in self.inner.settings().items()}
        return {"inner": self.inner.kind, **inner}

    def file_digests(self) -> dict[str, str]:
        """Return the digests of the trigger inside."""
        return {f"inner.{name}": value for name, value in self.inner.file_digests().items()}


def _require_marks(images: Tensor, kind: str) -> None:
    if not is_marked(images):
        raise TriggerError(
            f"a trigger of kind {kind!r} is for object detectors: it lies in the box of an object, "
            f"and these images of shape {tuple(images.shape[1:])} have no boxes; give pictures "
            "with boxes and --task detection"
        )
