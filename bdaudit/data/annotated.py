"""Pictures with annotated objects, as any layout describes them, before a picture is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bdaudit.data.classes import check_class_names
from bdaudit.errors import DataError
from bdaudit.foundation.texts import visible_form

__all__ = [
    "NOTHING_NAME",
    "AnnotatedObject",
    "AnnotatedPicture",
    "AnnotatedSet",
    "Box",
    "number_from_file",
    "with_nothing",
]

NOTHING_NAME = "nothing"
"""What class 0 is called."""

_ALSO_NOTHING = frozenset({"nothing", "background", "__background__"})
_MOST_OUT = 2.0  # pixels that a box may stick out of its picture, however small it is
_SHARE_OUT = 0.1  # of the box's own side

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object as its file has it.

    Attributes:
        where: What it is called in messages: the file, and which annotation of it.
        box: As the file has it; finite, and not yet compared with the picture.
        label: From 1.
        asked: Whether it becomes an image of the sample. Crowds and objects that are marked as
            difficult do not; no empty box may touch them all the same.
    """

    where: str
    box: Box
    label: int
    asked: bool = True

    def inside(self, size: tuple[int, int]) -> Box:
        """Return its box, clipped to a picture of (width, height) where it sticks out a little.

        Raises:
            DataError: The box has no area, or lies outside the picture by more than 2 pixels and a
                tenth of its side.
        """
        clipped = []
        for low, high, end, side in (
            (self.box[0], self.box[2], size[0], "width"),
            (self.box[1], self.box[3], size[1], "height"),
        ):
            if not low < high:
                raise DataError(
                    f"{self.where}: expected a box of a {side} above 0, got {high - low:g}; "
                    "remove the annotation or mend it"
                )
            out = max(-low, high - end)
            if out > max(_MOST_OUT, _SHARE_OUT * (high - low)) or low >= end or high <= 0:
                raise DataError(
                    f"{self.where}: expected a box inside the picture of {size[0]} x {size[1]} "
                    f"pixels, got left, top, right, bottom = "
                    f"{', '.join(f'{edge:g}' for edge in self.box)}; are its numbers in another "
                    "order, or those of a picture of another size?"
                )
            clipped.append((max(low, 0.0), min(high, float(end))))
        (left, right), (top, bottom) = clipped
        return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class AnnotatedPicture:
    """One picture and its objects.

    Attributes:
        path: The file.
        name: Its path inside the folder of pictures, without the extension.
        size: Width and height by its annotations, `None` where those do not say.
        objects: In the order of the file.
    """

    path: Path
    name: str
    size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedSet:
    """All pictures of a data set, or of its part that is read.

    Attributes:
        pictures: In the order of the files.
        class_names: In order of label, the first "nothing".
        classes_from: Who gave them.
        source: Where it is, for the record.
        root: The folder that no link may leave.
        notes: What was dropped, ignored or guessed.
    """

    pictures: tuple[AnnotatedPicture, ...]
    class_names: tuple[str, ...]
    classes_from: str
    source: str
    root: Path
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse what no sample can be made of.

        Raises:
            DataError: No picture has an object, two have one name, or names of classes cannot be
                told apart.
        """
        if not any(each.asked for picture in self.pictures for each in picture.objects):
            raise DataError(f"{self.source}: expected pictures with annotated objects, found none")
        seen: dict[str, Path] = {}
        for picture in self.pictures:
            other = seen.setdefault(picture.name, picture.path)
            if other is not picture.path:
                raise DataError(
                    f"{self.source}: expected pictures of different names, got {other.name} and "
                    f"{picture.path.name} for {picture.name!r}"
                )
        check_class_names(self.class_names, f"{self.source} ({self.classes_from})")


def with_nothing(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes with that of class 0 first, where it is not there yet."""
    first = visible_form(class_names[0]).lower() if class_names else ""
    rest = class_names[1:] if first in _ALSO_NOTHING else class_names
    return (NOTHING_NAME, *rest)


def number_from_file(value: object, where: str, what: str) -> float:
    """Return a number of an annotation, given as a number or a text.

    Raises:
        DataError: It is none, or not finite.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except ValueError:
        got = f"{value:.40}" if isinstance(value, str) else type(value).__name__
        raise DataError(f"{where}: expected a number for {what}, got {got!r}") from None
    return number
