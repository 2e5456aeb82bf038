"""What a user names as a model, as data or as a trigger: a file, an address, code, an object.

A text is looked at once, here. Everything later is told by the type what it has, and asks no string
again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from bdaudit.foundation.usercode import split_reference

__all__ = [
    "FileSource",
    "InMemory",
    "LocalFile",
    "LocalSource",
    "OnnxFile",
    "OpenVinoFile",
    "PythonFunction",
    "RemoteFile",
    "ServedModel",
    "Source",
    "is_url",
    "parse_file",
    "parse_model",
]

# What timm and open_clip call a model of the hub, and one in a folder.
_HUB_NAME = re.compile(r"hf[-_]hub:(?=[\w.-]+/[\w.-])")
_LOCAL_NAME = "local-dir:"
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]+://|{_HUB_NAME.pattern}")
_INFERENCE_PATH = "/v2/models/"
_PIN = "#sha256="


@dataclass(frozen=True)
class FileSource:
    """A local file or folder: a checkpoint, images, a trigger file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class OnnxFile:
    """A local ONNX file: it is asked by a runtime, and nothing is differentiated through it."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class OpenVinoFile:
    """The graph of a local OpenVINO IR, whose weights lie beside it; asked as an ONNX file is."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class PythonFunction:
    """A function of the user's own file, which is run to get it: `FILE.py:NAME`."""

    file: Path
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


@dataclass(frozen=True)
class ServedModel:
    """A model behind the Open Inference Protocol: `http(s)://HOST:PORT/v2/models/NAME`."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, to be fetched before anything is opened.

    Attributes:
        url: Secrets in it included; never shown as it is.
        is_onnx: Whether its name says that it is an ONNX file.
    """

    url: str
    is_onnx: bool = False

    def __str__(self) -> str:
        return self.url

    @property
    def is_pinned(self) -> bool:
        """Whether the URL says by a digest what must be found there."""
        return _PIN in self.url

    def at(self, path: Path) -> FileSource | OnnxFile:
        """Return the same source once it lies at `path`."""
        return OnnxFile(path) if self.is_onnx else FileSource(path)


@dataclass(frozen=True, eq=False)
class InMemory:
    """An object that the caller holds: a module, a loaded model, a function, arrays, a trigger."""

    value: object

    def __str__(self) -> str:
        return "in memory"


LocalFile: TypeAlias = FileSource | OnnxFile | OpenVinoFile
"""A file or folder of a model, which is read and not run."""

LocalSource: TypeAlias = LocalFile | PythonFunction | ServedModel | InMemory
"""What can be opened as it is."""

Source: TypeAlias = LocalSource | RemoteFile


def is_url(text: object) -> bool:
    """Return whether `text` is a URL rather than a path."""
    return isinstance(text, str) and _URL.match(text) is not None


def parse_model(value: object) -> Source:
    """Return what a model is named by.

    Args:
        value: A path, a URL, `hf-hub:ORG/REPO@REVISION`, `FILE.py:NAME`, the address of a served
            model, or an object. What was parsed before is returned as it is.
    """
    if isinstance(value, Source):
        return value
    if not isinstance(value, str | Path):
        return InMemory(value)
    text = str(value)
    if (named := _HUB_NAME.match(text)) is not None:
        text = "hf://" + text[named.end() :]
    if text.startswith(_LOCAL_NAME):
        return FileSource(Path(text.removeprefix(_LOCAL_NAME)))
    if is_url(text):
        try:
            parts = urlsplit(text)
        except ValueError:  # such as a bad IPv6 host; whoever fetches it says what is wrong
            return RemoteFile(text)
        if parts.scheme.lower() in ("http", "https") and _INFERENCE_PATH in parts.path:
            return ServedModel(text)
        # A revision may stand after the name, as in hf://org/repo/model.onnx@main.
        return RemoteFile(text, is_onnx=parts.path.partition("@")[0].lower().endswith(".onnx"))
    if (reference := split_reference(text)) is not None:
        return PythonFunction(*reference)
    path = Path(value)
    kind = _BY_SUFFIX.get(path.suffix.lower(), FileSource)
    return kind(path)


_BY_SUFFIX: dict[str, type[LocalFile]] = {
    ".onnx": OnnxFile,
    ".xml": OpenVinoFile,
}


def parse_file(value: object) -> FileSource | RemoteFile | InMemory:
    """Return what images, a trigger or a list is named by: a path, a URL, or an object.

    What was parsed before is returned as it is.
    """
    if isinstance(value, FileSource | RemoteFile | InMemory):
        return value
    if isinstance(value, str) and is_url(value):
        return RemoteFile(value)
    if isinstance(value, str | Path):
        return FileSource(Path(value))
    return InMemory(value)
