"""Image files below a folder, none of which may lie outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bdaudit.data.images import EXTENSIONS
from bdaudit.errors import DataError

__all__ = ["ImageFiles", "is_inside", "list_images", "stem_name", "unlisted"]

_N_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What a folder holds.

    Attributes:
        images: All image files below it, by extension, sorted by relative path.
        folders: Names of the folders directly in it, sorted, those without images too.
        notes: What was skipped.
    """

    images: tuple[Path, ...]
    folders: tuple[str, ...]
    notes: tuple[str, ...]


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path`, with every symbolic link followed, lies in or below `folder`.

    A path that cannot be followed (a loop of links, a NUL in it) does not.
    """
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False


def list_images(folder: Path, *, root: Path | None = None) -> ImageFiles:
    """Find all image files below `folder`.

    Hidden files and folders and files of other kinds are skipped.

    Args:
        folder: Where.
        root: The folder that no link may leave, where that is a larger one.

    Raises:
        DataError: A symbolic link leads out of the folder: a data set that came from elsewhere
            must not make the audit read (and report on) files of this machine. Or a link stands
            for a folder, whose images would be there twice.
    """
    found, others = [], []
    folders = set()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_symlink():
            if not is_inside(path, root or folder):
                raise DataError(
                    f"{path}: a link that leads out of {root or folder}; copy the file or the "
                    "folder in"
                )
            if path.is_dir():
                raise DataError(
                    f"{path}: a link to a folder, which is not followed; copy the folder, or "
                    "remove the link"
                )
        if path.is_dir():
            if len(relative.parts) == 1:
                folders.add(path.name)
        elif path.suffix.lower() in EXTENSIONS and path.is_file():
            found.append(path)
        else:
            others.append(path)
    return ImageFiles(tuple(found), tuple(sorted(folders)), _passed_over(others, folder))


def _passed_over(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Note files that were not read as images, if there are any."""
    if not paths:
        return ()
    named = ", ".join(path.relative_to(folder).as_posix() for path in paths[:_N_SHOWN])
    more = ", ..." if len(paths) > _N_SHOWN else ""
    return (f"skipped {len(paths)} files that are not images by their names ({named}{more})",)


def unlisted(folder: Path, listed: Sequence[Path], by: str) -> tuple[str, ...]:
    """Note images in `folder` that a list of labels leaves out, if there are any."""
    known = set(listed)
    left = [p for p in sorted(folder.iterdir()) if p not in known] if folder.is_dir() else []
    images = [path for path in left if path.suffix.lower() in EXTENSIONS]
    if not images:
        return ()
    return (f"skipped {len(images)} images that {by} does not list (first: {images[0].name})",)


def stem_name(path: Path, folder: Path) -> str:
    """Name an image by its path relative to `folder`, with / and without the extension."""
    return path.relative_to(folder).with_suffix("").as_posix()
