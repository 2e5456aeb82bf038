"""The poisoned test images of a BackdoorBench record folder.

BackdoorBench writes `bd_test_dataset/<true label>/<index in the clean test set>.png` beside its
checkpoints. These images already carry the trigger: they serve a `paired` trigger, and are never
a clean sample. Paths stored in its result files are not followed; the tree itself says it all.
"""

from __future__ import annotations

from pathlib import Path

from bdaudit.data.catalogue import Catalogue
from bdaudit.data.classes import folder_number
from bdaudit.data.files import list_images
from bdaudit.data.folder import files_catalogue
from bdaudit.errors import DataError

__all__ = ["POISONED_TREE", "backdoorbench_catalogue", "find_poisoned_tree"]

POISONED_TREE = "bd_test_dataset"


def find_poisoned_tree(folder: Path) -> Path | None:
    """Find the tree of poisoned test images: `folder` itself or one in it."""
    for place in (folder, folder / POISONED_TREE):
        if place.name == POISONED_TREE and place.is_dir():
            return place
    return None


def backdoorbench_catalogue(tree: Path) -> Catalogue:
    """Describe a `bd_test_dataset` tree; images are named by their clean test index.

    Raises:
        DataError: The tree is empty, or a path in it is not `<true label>/<index>.<extension>`.
    """
    found = list_images(tree)
    if not found.images:
        raise DataError(f"{tree}: expected images under <true label>/<index>.png, found none")
    labels, names = [], []
    for path in found.images:
        parts = path.relative_to(tree).with_suffix("").parts
        if len(parts) != 2:
            raise DataError(f"{path}: expected <true label>/<index in the clean test set>.png")
        label, index = (folder_number(part, str(path)) for part in parts)
        if label is None or index is None:
            raise DataError(f"{path}: expected <true label>/<index in the clean test set>.png")
        labels.append(label)
        names.append(str(index))
    return files_catalogue(
        found.images,
        labels,
        names=names,
        class_names=None,
        source=str(tree),
        root=tree,
        notes=found.notes,
    )
