"""The files of an audit, and whether a record is still true of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bdaudit.cases.fetching import is_endpoint
from bdaudit.cases.recorded import as_given
from bdaudit.cases.request import AuditRequest
from bdaudit.cases.sources import Sources, can_only_be_asked
from bdaudit.errors import BdauditError, InputError
from bdaudit.foundation.file_digests import digest_file
from bdaudit.foundation.opening import is_file, is_folder
from bdaudit.foundation.sources import is_url
from bdaudit.foundation.texts import read_toml
from bdaudit.foundation.usercode import split_reference
from bdaudit.models.architectures import is_clip
from bdaudit.models.clip import clip_files
from bdaudit.models.settings import read_model_toml
from bdaudit.models.shards import shard_files
from bdaudit.records import AuditRecord
from bdaudit.triggers.files import companion_files
from bdaudit.verdict import Policy
from bdaudit.version import __version__

__all__ = ["FileDigests", "is_still_true", "request_digests", "shared_by"]

_NO_MEASUREMENT = ("policy", "project")


_PINNED = "#sha256="


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
    """Say by name what determines the record of `request`, as digests.

    Returns:
        Equal for two requests whose records say the same; `None` where that cannot be told without
        running them: something is in memory, served, at an address that is not pinned by a digest,
        or not there.
    """
    request = request.with_modes()
    sources = request.sources
    try:
        digests = {name: _digest(value, files) for name, value in _inputs(sources)}
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
    digests["options"] = repr(
        [
            as_given(sources.model_options),
            as_given(sources.black_box),
            sources.feedback,
            sources.target_label,
            sources.allow_trigger_code,
            sources.classes if not isinstance(sources.classes, str | Path) else None,
        ]
    )
    digests["bdaudit"] = __version__
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
    """Say whether every file that a record read is still what it was.

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


def _inputs(sources: Sources) -> Iterator[tuple[str, Any]]:
    """Name everything that is read and where it is, `None` where there is nothing to read again."""
    models = [("defended", sources.defended)]
    if sources.original is not None:
        models.append(("original", sources.original))
    for role, several in (("reference", sources.references), ("surrogate", sources.surrogates)):
        models += [(f"{role} {number}", model) for number, model in enumerate(several, start=1)]
    for name, model in models:
        yield name, model
        if not _is_file(model):
            continue
        for number, shard in enumerate(shard_files(Path(str(model))), start=1):
            yield f"shard {number} of {name}", shard
        _, beside = read_model_toml(Path(str(model)))
        if beside is not None:
            yield f"settings of {name}", beside
    yield "data", sources.data
    if isinstance(sources.classes, str | Path):
        yield "classes", sources.classes
    if sources.trigger is not None:
        yield "trigger", sources.trigger
        if _is_file(sources.trigger):
            for number, path in enumerate(companion_files(Path(str(sources.trigger)))):
                yield f"file {number} of the trigger", path
            yield from _paired_images(Path(str(sources.trigger)))
    options = sources.model_options
    if options.arch is not None and (code := split_reference(options.arch)) is not None:
        yield "architecture", code[0]
    if options.clip is not None and options.arch is not None and is_clip(options.arch):
        for number, path in enumerate(clip_files(options.arch, options.clip)):
            yield f"CLIP {number}", path


def _paired_images(trigger: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folder of a paired trigger's images."""
    document = read_toml(trigger, what="a trigger")
    if document.get("kind") == "paired":
        yield "images of the trigger", trigger.parent / document["paired"]["folder"]


def _is_file(source: object) -> bool:
    return isinstance(source, str | Path) and not is_url(source) and is_file(source)


def _digest(source: object, files: FileDigests) -> str | None:
    if not isinstance(source, str | Path):
        return None
    text = str(source)
    if is_url(source):
        return text if _PINNED in text and not is_endpoint(source) else None
    if can_only_be_asked(text) and (code := split_reference(text)) is not None:
        return f"{code[1]} in {files.of(code[0])}"
    return files.of(Path(source))
