"""Whole models of the Hugging Face hub, `hf://org/repo@revision`, by the hub's own library.

They lie in the hub's own cache, where other programs find them too. Only what describes and holds a
network is fetched, no code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bdaudit.errors import FetchError
from bdaudit.fetching.cached import MAX_BYTES_VARIABLE, most_bytes, told_to_stay_offline
from bdaudit.fetching.urls import HUB
from bdaudit.foundation.opening import shown

__all__ = ["fetch_repository", "is_repository"]

_REPOSITORY = re.compile(r"hf://(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w.-]{1,200}))?")
_NEEDED = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "open_clip_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_OF_OPEN_CLIP = "open_clip_model.safetensors"
"""Asked for only where the weights are not there in the form of transformers or timm."""


def is_repository(url: str) -> bool:
    """Whether an address names a whole model of the hub and not one file of it."""
    return _REPOSITORY.fullmatch(url) is not None


def fetch_repository(url: str) -> tuple[Path, str]:
    """Fetch what describes and holds a model, unless it is there.

    Under $BDAUDIT_OFFLINE, and where the hub's own library is switched off line, only its cache is
    used.

    Args:
        url: `hf://org/repo` or `hf://org/repo@revision`: a branch, a tag or a commit.

    Returns:
        The folder, and the address with the commit that was found.

    Raises:
        FetchError: huggingface_hub is missing, there is no such model or revision, it cannot be
            had, or it is larger than $BDAUDIT_MAX_DOWNLOAD bytes (16 GiB).
    """
    match = _REPOSITORY.fullmatch(url)
    if match is None:
        raise FetchError(f"{shown(url)}: expected hf://ORGANISATION/REPOSITORY@REVISION")
    try:
        import huggingface_hub
    except ImportError as error:
        raise FetchError(f"{url}: needs huggingface_hub; pip install 'bdaudit[hf]'") from error
    huggingface_hub.utils.disable_progress_bars()  # type: ignore[attr-defined]
    repo, revision = match["repo"], match["revision"]
    offline = told_to_stay_offline(HUB)
    needed = [*_NEEDED, _OF_OPEN_CLIP]
    try:
        if not offline:
            planned: Any = huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=needed, dry_run=True
            )
            if any(file.filename.startswith("model") for file in planned):
                needed.remove(_OF_OPEN_CLIP)
                planned = [file for file in planned if file.filename != _OF_OPEN_CLIP]
            size = sum(file.file_size or 0 for file in planned)
            if size > most_bytes():
                raise FetchError(
                    f"{url}: has {size} bytes, more than the {most_bytes()} that are fetched at "
                    f"most (${MAX_BYTES_VARIABLE})"
                )
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=needed, local_files_only=offline
        )
    except FetchError:
        raise
    # Its errors hold addresses, and those may be signed.
    except Exception as error:
        why = "is not in the hub's cache on this machine" if offline else "cannot be had"
        raise FetchError(
            f"{url}: {why} ({type(error).__name__}); download it where there is a network (hf "
            f"download {repo}) and give its folder"
        ) from error
    path = Path(folder)
    return path, f"hf://{repo}@{path.name}"
