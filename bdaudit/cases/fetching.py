"""Inputs that are named by URLs: fetched before anything is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdaudit.errors import InputError, TriggerError
from bdaudit.fetching import (
    fetch_beside,
    fetch_repository,
    fetch_steps,
    is_repository,
    public_url,
)
from bdaudit.foundation.progress import Steps
from bdaudit.foundation.sources import FileSource, OnnxFile, RemoteFile
from bdaudit.foundation.texts import read_toml
from bdaudit.triggers.files import companion_names

if TYPE_CHECKING:
    from bdaudit.cases.sources import Sources

__all__ = ["fetch_sources", "fetch_trigger", "in_public", "naming_origins"]


_MODELS = ("defended", "original", "references", "surrogates")


def fetch_sources(sources: Sources) -> Steps[Sources]:
    """Fetch whatever is named by a URL.

    Returns:
        The same sources with paths into the cache, and `origins` to name them by.

    Raises:
        FetchError: Something cannot be had, or is not what its digest says.
    """
    changed: dict[str, Any] = {}
    origins = dict(sources.origins)
    for name in ("defended", "original", "data", "trigger"):
        value = getattr(sources, name)
        if isinstance(value, RemoteFile):
            changed[name] = yield from _fetched(name, value, origins)
    for name in ("references", "surrogates", "placebos"):
        several = list(getattr(sources, name))
        for k, value in enumerate(several):
            if isinstance(value, RemoteFile):
                several[k] = yield from _fetched(name, value, origins)
                changed[name] = tuple(several)
    return replace(sources, **changed, origins=origins) if changed else sources


def _fetched(name: str, value: RemoteFile, origins: dict[str, str]) -> Steps[FileSource | OnnxFile]:
    """Fetch what one field names: a whole model of the hub, a trigger with its files, a file."""
    if name in _MODELS and is_repository(value.url):
        folder, address = fetch_repository(value.url)
        origins[str(folder)] = address
        return FileSource(folder)
    is_trigger = name in ("trigger", "placebos")
    steps = fetch_trigger(value.url) if is_trigger else fetch_steps(value.url)
    return value.at((yield from _noting(steps, value.url, origins)))


def _noting(steps: Steps[Path], url: str, origins: dict[str, str]) -> Steps[Path]:
    path = yield from steps
    public = public_url(url).partition("#")[0]
    origins[str(path)] = public
    # What came with it lies in the same folder.
    origins[str(path.parent)] = public.rpartition("/")[0]
    return path


def fetch_trigger(url: str) -> Steps[Path]:
    """Fetch a trigger file and every file it names beside itself.

    Raises:
        FetchError: As for a single file.
        TriggerError: It is no TOML file, or names a folder.
    """
    path = yield from fetch_steps(url)
    document = read_toml(path, what=f"a trigger file from {public_url(url)}", error=TriggerError)
    if document.get("kind") == "paired":
        raise TriggerError(
            f"{public_url(url)}: the folder of a paired trigger cannot be fetched; download it"
        )
    for name in companion_names(document):
        yield from fetch_beside(url, name)
    return path


@contextmanager
def naming_origins(origins: Mapping[str, str]) -> Iterator[None]:
    """Have errors about fetched files name their addresses, and not where the files lie here.

    Raises:
        InputError: As it was raised inside.
    """
    try:
        yield
    except InputError as error:
        if not origins:
            raise
        raise type(error)(in_public(str(error), origins)) from error


def in_public(value: Any, origins: Mapping[str, str]) -> Any:
    """Name files in texts by where they came from, not by where the cache has them."""
    if isinstance(value, str):
        for path, origin in origins.items():
            value = value.replace(path, origin)
        return value
    if isinstance(value, Mapping):
        return {key: in_public(inner, origins) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [in_public(inner, origins) for inner in value]
    return value
