"""Object detectors as classifiers of the boxes they are asked about."""

from bdaudit.detection.asked import (
    MIN_OVERLAP,
    SCORE_THRESHOLD,
    Asked,
    as_asked,
    is_detector,
    score_boxes,
)
from bdaudit.detection.framing import framed
from bdaudit.detection.marking import (
    CHANNELS,
    NOTHING,
    PIXELS,
    Places,
    boxes_of,
    inside_of,
    is_marked,
    mark,
    off_mark,
    pixels_of,
    sparing_marks,
    unmarked,
    with_pixels,
)
from bdaudit.detection.quality import average_precision

__all__ = [
    "CHANNELS",
    "MIN_OVERLAP",
    "NOTHING",
    "PIXELS",
    "SCORE_THRESHOLD",
    "Asked",
    "Places",
    "as_asked",
    "average_precision",
    "boxes_of",
    "framed",
    "inside_of",
    "is_detector",
    "is_marked",
    "mark",
    "off_mark",
    "pixels_of",
    "score_boxes",
    "sparing_marks",
    "unmarked",
    "with_pixels",
]
