"""Object detectors as classifiers of the boxes they are asked about."""

from bdaudit.detection.marking import (
    CHANNELS,
    NOTHING,
    Places,
    boxes_of,
    inside_of,
    is_marked,
    mark,
    pixels_of,
    sparing_marks,
    unmarked,
    with_pixels,
)

__all__ = [
    "CHANNELS",
    "NOTHING",
    "Places",
    "boxes_of",
    "inside_of",
    "is_marked",
    "mark",
    "pixels_of",
    "sparing_marks",
    "unmarked",
    "with_pixels",
]
