"""A clean, labelled sample of images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from bdaudit.data.table_columns import TableColumns
from bdaudit.detection import Places

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Clean images with their true labels.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64.
        names: One stable name an image (its path inside the folder, without the extension, or
            its index), by which already poisoned images are matched.
        class_names: Names in order of index, `None` when unknown.
        source: Where it came from, for the record.
        sha256: Digest over images and labels as loaded.
        notes: What of the source was dropped, ignored, converted or guessed, for a person.
        classes_from: Who gave the class names: "--classes", "its class folders".
        columns: Of a table, whose rows are images of 1 x F: what its columns are.
        places: Of pictures with objects, whose images are marked (`detection.mark`): which box of
            which picture each asks about.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    source: str
    sha256: str
    notes: tuple[str, ...] = ()
    classes_from: str = "the class names"
    columns: TableColumns | None = None
    places: Places | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def take(self, indices: Tensor) -> Sample:
        """Return the sub-sample at `indices`; the digest stays the whole sample's."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            names=tuple(self.names[int(index)] for index in indices),
            places=None if self.places is None else self.places.take(indices),
        )
