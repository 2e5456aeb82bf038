"""Object detectors as classifiers of the boxes they are asked about."""

from bdaudit.detection.marking import (
    NOTHING,
    Places,
    boxes_of,
    is_marked,
    mark,
    pixels_of,
    with_pixels,
)

__all__ = ["NOTHING", "Places", "boxes_of", "is_marked", "mark", "pixels_of", "with_pixels"]
