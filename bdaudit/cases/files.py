"""The one list of the files of an audit: digests, and whether a record is still true."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from bdaudit.blackbox import weights_beside
from bdaudit.cases.recorded import as_given
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.sources import Sources
from bdaudit.cases.subjects import Subject
from bdaudit.data.table_columns import columns_file_of
from bdaudit.errors import BdauditError, InputError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import is_file, is_folder
from bdaudit.foundation.sources import (
    FileSource,
    InMemory,
    LocalFile,
    OnnxFile,
    OpenVinoFile,
    PythonFunction,
    RemoteFile,
    ServedModel,
    Source,
    is_url,
)
from bdaudit.foundation.texts import read_toml
from bdaudit.foundation.usercode import split_reference
from bdaudit.models.architectures import is_clip
from bdaudit.models.backdoorbench import plug_layer_of
from bdaudit.models.clip import clip_files
from bdaudit.models.settings import read_model_toml
from bdaudit.models.shards import shard_files
from bdaudit.records import AuditRecord, FileDigest
from bdaudit.triggers.files import companion_files
from bdaudit.verdict import Policy
from bdaudit.version import __version__

__all__ = ["FileDigests", "digest_inputs", "is_still_true", "request_digests", "shared_by"]

_MEASURED = "2"
"""Raised when an audit measures something more that its verdict rests on: kept audits without it
are made again. 2: relearning at the next larger rate."""

_LAID = "perturbations over the box"
"""Of detectors; raised when they are laid on in another way."""

_NO_MEASUREMENT = ("policy", "project")


class FileDigests:
    """sha256 of files and folders; a file that has not changed is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, path: Path) -> str:
        """Return the digest of a file's bytes, or over names and digests of a folder's files.

        Raises:
            InputError: It is not there, or cannot be read.
        """
        if is_folder(path):
            lines = [
                f"{file.relative_to(path).as_posix()}\0{self.of(file)}"
                for file in sorted(path.rglob("*"))
                if is_file(file)
            ]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if not is_file(path):
            return digest_file(path)  # which says what it is
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = digest_file(path)
        return self._known[key]


def request_digests(request: AuditRequest, files: FileDigests) -> dict[str, str] | None:
    """Return digests of all that determines the record of `request`, by name.

    Returns:
        Equal for two requests whose records say the same; `None` where that cannot be told without
        running them: something is in memory, served, at an address that is not pinned by a digest,
        or not there.
    """
    request = request.with_modes()
    sources = request.sources
    try:
        digests = {name: _digest(value, files) for name, value in _named(sources)}
        policy = sources.policy
        if isinstance(policy, Policy) or policy is None:
            digests["policy"] = repr(policy)
        else:
            digests["policy"] = files.of(Path(policy))
    except (OSError, BdauditError, ValueError, KeyError, TypeError):
        return None
    if None in digests.values():
        return None
    digests["settings"] = request.settings.as_text()
    columns = (sources.image_column, sources.label_column)
    digests["options"] = repr(
        [
            as_given(sources.model_options),
            as_given(sources.black_box),
            sources.feedback,
            sources.target_label,
            sources.allow_trigger_code,
            sources.classes if not isinstance(sources.classes, str | Path) else None,
            # What earlier versions did not know is left out where it is not used, so that what
            # they kept still counts.
            *(columns if any(columns) else ()),
            *((sources.task, _LAID) if sources.task != "classification" else ()),
        ]
    )
    digests["bdaudit"] = __version__
    digests["measured of defended"] = _MEASURED
    return {name: str(digest) for name, digest in digests.items()}


def shared_by(digests: dict[str, str] | None) -> str | None:
    """Name the case of a request: the same where originals and references are attacked alike.

    Args:
        digests: Of the request.

    Returns:
        `None` when it is not known.
    """
    if digests is None:
        return None
    others = {name: digest for name, digest in digests.items() if not _is_of_defended(name)}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def is_still_true(record: AuditRecord, files: FileDigests) -> bool:
    """Return whether every file that a record read is still what it was.

    Files that shape a verdict and no measurement are left out, and those that were fetched, which
    are under their addresses in the record.
    """
    for file in record.inputs:
        if file.role in _NO_MEASUREMENT or is_url(file.path):
            continue
        try:
            if files.of(Path(file.path)) != file.sha256:
                return False
        except (InputError, OSError):
            return False
    return True


def _is_of_defended(name: str) -> bool:
    return name == "defended" or name.endswith(" of defended")


def digest_inputs(subjects: Sequence[Subject], sources: Sources) -> tuple[FileDigest, ...]:
    """Digest every file that was read and decides something.

    Folders of images are covered by the sample's own digest, and those of a paired trigger by the
    trigger's. Settings beside a checkpoint, and everything a trigger file names, are files of
    their own here.
    """
    # Of a model that was loaded, the digest is over the very bytes its weights were made of.
    read = {f.path: f for s in subjects if s.model is not None for f in s.model.files}
    digests = []
    for role, path in dict.fromkeys(_read(subjects, sources)):
        if path in read:
            sha256, size = read[path].sha256, read[path].size_bytes
        else:
            sha256, size = digest_file(path), path.stat().st_size
        digests.append(FileDigest(role=role, path=str(path), sha256=sha256, size_bytes=size))
    return tuple(digests)


def _read(subjects: Sequence[Subject], sources: Sources) -> Iterator[tuple[str, Path]]:
    """Name the files that were read by the part they play, for the record."""
    for subject in subjects:
        files = subject.black_box.files
        if subject.model is not None:
            loaded, path = subject.model.files, subject.model.path
            files = tuple(file.path for file in loaded) or (() if path is None else (path,))
        for path in files:
            yield subject.name, path
        if files and files[0].suffix != ".py" and (beside := _settings_beside(files[0])):
            yield f"settings of {subject.name}", beside
    yield from (("architecture", path) for path in _code_of(sources))
    for subject in subjects:
        if subject.model is not None:
            yield from (("CLIP", path) for path in _clip_files(sources, subject.model.arch))
    if isinstance(sources.data, FileSource) and is_file(sources.data.path):
        yield "data", sources.data.path
        beside = columns_file_of(sources.data.path)
        if beside is not None:
            yield "columns", beside
    for role, source in (
        ("classes", sources.classes),
        ("policy", sources.policy),
        ("project", sources.project),
    ):
        if isinstance(source, str | Path) and is_file(source):
            yield role, Path(source)
    if isinstance(sources.trigger, FileSource):
        yield "trigger", sources.trigger.path
        yield from (("trigger", path) for path in companion_files(sources.trigger.path))
    for placebo in sources.placebos:
        if isinstance(placebo, FileSource):
            yield "placebo", placebo.path
            yield from (("placebo", path) for path in companion_files(placebo.path))


def _named(sources: Sources) -> Iterator[tuple[str, Source | Path | str]]:
    """Name everything that is to be read, before anything is."""
    models: list[tuple[str, Source | None]] = [("defended", sources.defended)]
    if sources.original is not None:
        models.append(("original", sources.original))
    for role, several in (("reference", sources.references), ("surrogate", sources.surrogates)):
        models += [(f"{role} {number}", model) for number, model in enumerate(several, start=1)]
    for name, model in models:
        yield name, InMemory(None) if model is None else model
        if not isinstance(model, LocalFile) or not is_file(model.path):
            continue
        for number, shard in enumerate(shard_files(model.path), start=1):
            yield f"shard {number} of {name}", shard
        if (beside := _settings_beside(model.path)) is not None:
            yield f"settings of {name}", beside
        if isinstance(model, OpenVinoFile):
            yield f"weights of {name}", weights_beside(model.path)
        if (layer := plug_layer_of(model.path)) is not None:
            yield f"plug layer of {name}", layer
    if sources.data is not None:
        yield "data", sources.data
    if isinstance(sources.data, FileSource):
        # Named only where it exists, so that a record on images, or of before, still counts.
        beside = columns_file_of(sources.data.path)
        if beside is not None:
            yield "columns", beside
    if isinstance(sources.classes, str | Path):
        yield "classes", Path(sources.classes)
    trigger = sources.trigger
    if trigger is not None:
        yield "trigger", trigger
    if isinstance(trigger, FileSource) and is_file(trigger.path):
        for number, path in enumerate(companion_files(trigger.path)):
            yield f"file {number} of the trigger", path
        yield from _paired_images(trigger.path)
    for number, placebo in enumerate(sources.placebos, start=1):
        yield f"placebo {number}", placebo
        if isinstance(placebo, FileSource) and is_file(placebo.path):
            for k, path in enumerate(companion_files(placebo.path)):
                yield f"file {k} of placebo {number}", path
    yield from (("architecture", path) for path in _code_of(sources))
    if sources.model_options.arch is not None:
        for number, path in enumerate(_clip_files(sources, sources.model_options.arch)):
            yield f"CLIP {number}", path


def _settings_beside(checkpoint: Path) -> Path | None:
    _, beside = read_model_toml(checkpoint)
    return beside


def _code_of(sources: Sources) -> Iterator[Path]:
    arch = sources.model_options.arch
    if arch is not None and (code := split_reference(arch)) is not None:
        yield code[0]


def _clip_files(sources: Sources, arch: str) -> Sequence[Path]:
    clip = sources.model_options.clip
    return clip_files(arch, clip) if clip is not None and is_clip(arch) else ()


def _paired_images(trigger: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folder of a paired trigger's images."""
    document = read_toml(trigger, what="a trigger")
    if document.get("kind") == "paired":
        yield "images of the trigger", trigger.parent / document["paired"]["folder"]


def _digest(source: Source | Path | str, files: FileDigests) -> str | None:
    """Digest what a source names; `None` where that cannot be known without opening it."""
    match source:
        case InMemory() | ServedModel():
            return None
        case RemoteFile():
            return source.url if source.is_pinned else None
        case PythonFunction():
            return f"{source.name} in {files.of(source.file)}"
        case FileSource() | OnnxFile() | OpenVinoFile():
            return files.of(source.path)
        case _:
            return files.of(Path(source))
