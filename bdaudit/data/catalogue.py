"""What a data set holds, known before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.data.images import ImageShape
from bdaudit.data.sample import Sample
from bdaudit.data.table_columns import TableColumns
from bdaudit.detection import Places
from bdaudit.errors import DataError
from bdaudit.foundation.digests import digest_tensors

__all__ = ["Catalogue", "read_catalogue"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """Labels and names of a source, and a way to read the images at chosen indices.

    A subset is thus chosen by label first, and only its images are ever decoded.

    Attributes:
        labels: (N,) int64.
        names: One name an image.
        class_names: In order of index, `None` when unknown.
        source: Where it is, for the record.
        read: From indices (M,) and an image shape (or `None`: all must agree) to images
            (M, C, H, W), float32 in [0, 1], and notes on what became of them.
        notes: What of the source was dropped, ignored or guessed.
        classes_from: Who gave the class names.
        has_columns: Whether it is a table, of which the user may name columns.
        columns: What the columns are where they are the images themselves.
        places: Of marked images, which box of which picture each asks about.
    """

    labels: Tensor
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    source: str
    read: Callable[[Tensor, ImageShape | None], tuple[Tensor, tuple[str, ...]]]
    notes: tuple[str, ...] = ()
    classes_from: str = "the class names"
    has_columns: bool = False
    columns: TableColumns | None = None
    places: Places | None = None


def read_catalogue(catalogue: Catalogue, indices: Tensor, image_shape: ImageShape | None) -> Sample:
    """Read the images at `indices` (M,) into a sample.

    Raises:
        DataError: There are no images, all have the same label, a label is below 0 or beyond the
            class names, or an image cannot be read.
    """
    labels = catalogue.labels[indices]
    _check_labels(labels, catalogue)
    images, notes = catalogue.read(indices, image_shape)
    bounds = {} if catalogue.columns is None else catalogue.columns.digest()
    places = None if catalogue.places is None else catalogue.places.take(indices)
    boxes = {} if places is None else _tensors_of(places)
    return Sample(
        images=images,
        labels=labels,
        names=tuple(catalogue.names[int(index)] for index in indices),
        class_names=catalogue.class_names,
        source=catalogue.source,
        sha256=digest_tensors({"images": images, "labels": labels, **bounds, **boxes}),
        notes=(*catalogue.notes, *notes),
        classes_from=catalogue.classes_from,
        columns=catalogue.columns,
        places=places,
    )


def _tensors_of(places: Places) -> dict[str, Tensor]:
    """Return what places say, for a digest; pictures that nothing asks about do not count."""
    used, numbers = torch.unique(places.pictures, return_inverse=True)
    annotated = [places.annotated[int(picture)] for picture in used]
    return {
        "pictures": numbers,
        "boxes": places.boxes,
        "annotated boxes": torch.cat([boxes for boxes, _ in annotated]),
        "annotated labels": torch.cat([labels for _, labels in annotated]),
        "annotated counts": torch.tensor([len(labels) for _, labels in annotated]),
    }


def _check_labels(labels: Tensor, catalogue: Catalogue) -> None:
    if labels.numel() == 0:
        raise DataError(f"{catalogue.source}: expected labelled images, found none")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"{catalogue.source}: expected labels of 0 and above, got {low}")
    if catalogue.class_names is not None and high >= len(catalogue.class_names):
        raise DataError(
            f"{catalogue.source}: label {high} is out of range for the "
            f"{len(catalogue.class_names)} class names given"
        )
    if low == high:
        expected = "two classes (one folder a class, or labels of several values)"
        if catalogue.places is not None:
            expected = "objects of two classes, or pictures with room for an empty box"
        raise DataError(
            f"{catalogue.source}: all {labels.numel()} images have label {low}; expected at least "
            f"{expected}"
        )
