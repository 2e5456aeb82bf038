"""The digests by which an audit can be tied to files again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdaudit.blackbox import BlackBoxOptions
from bdaudit.cases.fetching import in_public
from bdaudit.cases.recorded import as_recorded
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import is_file
from bdaudit.foundation.usercode import split_reference
from bdaudit.models.architectures import is_clip
from bdaudit.models.clip import clip_files
from bdaudit.models.settings import ModelSettings, read_model_toml
from bdaudit.records import FileDigest
from bdaudit.triggers.files import companion_files

if TYPE_CHECKING:
    from bdaudit.cases.sources import Sources
    from bdaudit.cases.subjects import Subject

__all__ = ["IN_MEMORY", "describe_sources", "digest_inputs"]

IN_MEMORY = "in memory"
"""Stands in a record for what was handed over as an object and cannot be opened again."""


def digest_inputs(subjects: Sequence[Subject], sources: Sources) -> tuple[FileDigest, ...]:
    """Digest every file that was read and decides something.

    Folders of images are covered by the sample's own digest, and those of a paired trigger by the
    trigger's. Settings beside a checkpoint, and everything a trigger file names, are files of
    their own here.
    """
    # Of a model that was loaded, the digest is over the very bytes its weights were made of.
    read = {f.path: f for s in subjects if s.model is not None for f in s.model.files}
    digests = []
    for role, path in dict.fromkeys(_files(subjects, sources)):
        if path in read:
            sha256, size = read[path].sha256, read[path].size_bytes
        else:
            sha256, size = digest_file(path), path.stat().st_size
        digests.append(FileDigest(role=role, path=str(path), sha256=sha256, size_bytes=size))
    return tuple(digests)


def _files(subjects: Sequence[Subject], sources: Sources) -> Iterator[tuple[str, Path]]:
    for subject in subjects:
        files = subject.black_box.files
        if subject.model is not None:
            loaded, path = subject.model.files, subject.model.path
            files = tuple(file.path for file in loaded) or (() if path is None else (path,))
        for path in files:
            yield subject.name, path
        if files and files[0].suffix != ".py":
            _, beside = read_model_toml(files[0])
            if beside is not None:
                yield f"settings of {subject.name}", beside
    arch = sources.model_options.arch
    if arch is not None and (code := split_reference(arch)) is not None:
        yield "architecture", code[0]
    clip = sources.model_options.clip
    for subject in subjects:
        if clip is not None and subject.model is not None and is_clip(subject.model.arch):
            yield from (("CLIP", path) for path in clip_files(subject.model.arch, clip))
    for role, source in (
        ("data", sources.data),
        ("classes", sources.classes),
        ("policy", sources.policy),
        ("project", sources.project),
    ):
        if isinstance(source, str | Path) and is_file(source):
            yield role, Path(source)
    if isinstance(sources.trigger, str | Path):
        trigger = Path(sources.trigger)
        yield "trigger", trigger
        for path in companion_files(trigger):
            yield "trigger", path


def describe_sources(sources: Sources, files: Sequence[FileDigest]) -> dict[str, Any]:
    """Write down how everything was named, as plain values.

    A file that was fetched stands under its address, pinned to what was fetched. `files` are all
    that were read.
    """
    digests = {file.path: file.sha256 for file in files}
    pinned = {
        path: f"{origin}#sha256={digests[path]}" if path in digests else origin
        for path, origin in sources.origins.items()
    }
    return {
        entry.name: in_public(_plain(getattr(sources, entry.name)), pinned)
        for entry in fields(sources)
        # The verdict holds the limits themselves.
        if entry.name not in ("policy", "origins")
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, ModelSettings | BlackBoxOptions):
        return _plain(as_recorded(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        named = [_plain(inner) for inner in value]
        # A pair of arrays, or of modules, is one thing in memory.
        return IN_MEMORY if any(inner == IN_MEMORY for inner in named) else named
    return IN_MEMORY
