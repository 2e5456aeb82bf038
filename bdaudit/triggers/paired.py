"""Triggers known only by example: a folder of images that already carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from bdaudit.data.backdoorbench import backdoorbench_catalogue
from bdaudit.data.files import list_images, stem_name
from bdaudit.data.images import read_images
from bdaudit.errors import ConfigError, TriggerError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.triggers.transforms import Setting, Transform

__all__ = ["Layout", "Paired"]

Layout = Literal["names", "backdoorbench"]
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired(Transform):
    """Triggered images read from files and matched by name to the clean ones.

    Sample-specific and dynamic triggers, whose generator nobody has, come this way.

    Attributes:
        folder: Where the triggered images are.
        layout: "names": each file has the relative path of its clean image, or at least the same
            file name where that is unambiguous; extensions do not matter, and "0017" matches "17".
            "backdoorbench": `<true label>/<clean test index>.png`, as in `bd_test_dataset`; the
            true labels are then compared with the sample's, which catches data sets that are
            counted in another order.
    """

    kind: ClassVar[str] = "paired"
    folder: Path
    layout: Layout = "names"
    _by_name: Mapping[str, Path] = field(init=False, repr=False)
    _by_key: Mapping[str, Path] = field(init=False, repr=False)
    _true_labels: Mapping[Path, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(
                f"layout: expected {' or '.join(get_args(Layout))}, got {self.layout!r}"
            )
        if not self.folder.is_dir():
            raise TriggerError(f"{self.folder}: expected a folder of triggered images")
        paths = list_images(self.folder).images
        if not paths:
            raise TriggerError(f"{self.folder}: no images in this folder of triggered images")
        true_labels: dict[Path, int] = {}
        if self.layout == "backdoorbench":
            labels = backdoorbench_catalogue(self.folder).labels.tolist()
            true_labels = dict(zip(paths, labels, strict=True))
        object.__setattr__(self, "_true_labels", true_labels)
        object.__setattr__(self, "_by_name", {stem_name(p, self.folder): p for p in paths})
        object.__setattr__(self, "_by_key", _unambiguous(paths))

    def apply(self, images: Tensor, names: Sequence[str] | None) -> Tensor:
        """Give back the triggered versions of the images called `names`."""
        if names is None or len(names) != images.shape[0]:
            raise TriggerError(
                "a paired trigger needs the name of every image; "
                f"got {0 if names is None else len(names)} names for {images.shape[0]} images"
            )
        if not names:
            return images.clone()
        found = self._locate(names)
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            raise TriggerError(
                f"{self.folder}: no triggered version of {len(missing)} of {len(names)} images; "
                f"first: {', '.join(missing[:_SHOWN])}"
            )
        _, channels, height, width = images.shape
        paths = [path for path in found if path is not None]
        triggered, _ = read_images(paths, (channels, height, width), within=self.folder)
        return triggered.to(images)

    def covers(self, names: Sequence[str], labels: Tensor) -> Tensor:
        """Return for which images there is a triggered version.

        Raises:
            TriggerError: A file's true label (BackdoorBench layout) is not the sample's, or two
                images of the sample match the same file.
        """
        found = self._locate(names)
        for name, label, path in zip(names, labels.tolist(), found, strict=True):
            if path is not None and self._true_labels.get(path, label) != label:
                raise TriggerError(
                    f"{path}: true label {self._true_labels[path]}, but image {name!r} of the "
                    f"sample has label {label}; the two count different test sets, or the same one "
                    "in another order"
                )
        return torch.tensor([path is not None for path in found], dtype=torch.bool)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: the images stay on disk until they are stamped."""
        return {}

    def settings(self) -> dict[str, Setting]:
        """Return the layout; where the folder lies is not part of the trigger."""
        return {"layout": self.layout}

    def file_digests(self) -> dict[str, str]:
        """Return the sha256 of every triggered image, by name."""
        return {name: digest_file(path) for name, path in self._by_name.items()}

    def _locate(self, names: Sequence[str]) -> list[Path | None]:
        found: list[Path | None] = []
        taken: dict[Path, str] = {}
        for name in names:
            path = self._by_name.get(name) or self._by_key.get(_key(name))
            if path is not None and taken.setdefault(path, name) != name:
                raise TriggerError(
                    f"{path}: matches both {taken[path]!r} and {name!r} of the sample; "
                    "give the triggered images the relative paths of the clean ones"
                )
            found.append(path)
        return found


def _key(name: str) -> str:
    """Reduce a name to its last part, a number to its shortest spelling."""
    last = name.rsplit("/", 1)[-1]
    return str(int(last)) if last.isascii() and last.isdecimal() else last


def _unambiguous(paths: Sequence[Path]) -> dict[str, Path]:
    by_key: dict[str, list[Path]] = {}
    for path in paths:
        by_key.setdefault(_key(path.stem), []).append(path)
    return {key: found[0] for key, found in by_key.items() if len(found) == 1}
