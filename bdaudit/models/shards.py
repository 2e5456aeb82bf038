"""Weights in several files, with an index that says which tensor is in which file.

The index is what Hugging Face's libraries write beside the shards (`model.safetensors.index.json`,
`pytorch_model.bin.index.json`): `{"metadata": {...}, "weight_map": {"conv1.weight": "FILE", ...}}`.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bdaudit.errors import ModelError
from bdaudit.foundation.opening import SETTINGS_BYTES, read_bytes
from bdaudit.models.strict_json import load_strictly

__all__ = ["INDEX_BYTES", "INDEX_SUFFIX", "linked_within", "read_index", "shard_files"]

INDEX_SUFFIX = ".index.json"
INDEX_BYTES = 64 * SETTINGS_BYTES
_MOST_SHARDS = 1000


def read_index(path: Path, content: bytes) -> dict[str, set[str]]:
    """Return the names of the tensors in each shard, by the shard's file name.

    Args:
        path: The index, for messages.
        content: Its bytes.

    Raises:
        ModelError: It is no such index, or names a file outside its own folder.
    """
    try:
        document: Any = load_strictly(content)
    except ValueError as error:
        raise ModelError(f"{path}: expected an index of shards in JSON, got {error}") from error
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not names:
        raise ModelError(
            f"{path}: expected an index of shards, with the file of each tensor under "
            f"'weight_map', got none; name the checkpoint itself"
        )
    shards: dict[str, set[str]] = {}
    for tensor, file in names.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise ModelError(
                f"{path}: expected shards by their file names, in the folder of the index, got "
                f"{json.dumps(file)[:120]} for {tensor[:80]!r}; do not trust this file"
            )
        shards.setdefault(file, set()).add(tensor)
    if len(shards) > _MOST_SHARDS:
        raise ModelError(f"{path}: expected at most {_MOST_SHARDS} shards, got {len(shards)}")
    return dict(sorted(shards.items()))


def shard_files(path: Path) -> tuple[Path, ...]:
    """Return the shards of an index; none of any other file.

    Raises:
        ModelError: It is called an index and is none.
    """
    if not path.name.lower().endswith(INDEX_SUFFIX):
        return ()
    content = read_bytes(path, limit=INDEX_BYTES, what="an index of shards", error=ModelError)
    return tuple(path.with_name(name) for name in read_index(path, content))


def linked_within(folder: Path) -> Path:
    """Return the folder that the files in `folder` must lie in once links are followed.

    In the cache of the hub's own library a snapshot is a folder of links to the blobs beside it.
    """
    whole = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and whole.name.startswith("models--")
    return whole if is_snapshot else folder


def _is_plain(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and "\0" not in name
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
