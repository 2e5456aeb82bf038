"""Image files below a folder, none of which may lie outside it."""

from __future__ import annotations

from pathlib import Path

from bdaudit.data.images import EXTENSIONS
from bdaudit.errors import DataError

__all__ = ["is_inside", "list_images", "stem_name"]


def is_inside(path: Path, folder: Path) -> bool:
    """Say whether `path`, with every symbolic link followed, lies in or below `folder`."""
    return path.resolve().is_relative_to(folder.resolve())


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return all image files below `folder`, by extension, sorted by relative path.

    Hidden files and folders and files of other kinds are passed over.

    Raises:
        DataError: A symbolic link leads out of the folder: a data set that came from elsewhere
            must not make the audit read (and report on) files of this machine.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() and not is_inside(path, folder):
            raise DataError(
                f"{path}: a link that leads out of {folder}; copy the file or the folder in"
            )
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            found.append(path)
    return tuple(found)


def stem_name(path: Path, folder: Path) -> str:
    """Name an image by its path relative to `folder`, with / and without the extension."""
    return path.relative_to(folder).with_suffix("").as_posix()
