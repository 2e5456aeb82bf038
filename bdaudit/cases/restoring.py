"""From a record back to the sources and settings it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bdaudit.blackbox import BlackBoxOptions
from bdaudit.cases.description import IN_MEMORY
from bdaudit.cases.kept_trigger import restore_trigger
from bdaudit.cases.recorded import from_recorded
from bdaudit.cases.settings import AuditSettings
from bdaudit.cases.sources import Sources
from bdaudit.errors import InputError, RecordError
from bdaudit.foundation.sources import InMemory, PythonFunction, is_url, parse_model
from bdaudit.foundation.usercode import split_reference
from bdaudit.models import ModelSettings
from bdaudit.records import AuditRecord

__all__ = ["restore_settings", "restore_sources"]


def restore_settings(document: AuditRecord, path: Path) -> AuditSettings:
    """Return the settings that a record says it was made with.

    Raises:
        RecordError: This version does not know them.
    """
    try:
        return TypeAdapter(AuditSettings).validate_python(
            from_recorded("AuditSettings", document.settings)
        )
    except ValidationError as error:
        raise RecordError(
            f"{path}: its settings belong to another version; verify it with bdaudit "
            f"{document.environment.bdaudit}: {error.errors()[0]['msg']}"
        ) from error


def restore_sources(
    document: AuditRecord, folder: Path, path: Path, *, allow_code: bool
) -> Sources:
    """Name everything as the record does, with paths as seen from here.

    Raises:
        RecordError: The record does not say, or says what this version does not know.
        InputError: Something was handed over in memory, or is code and that is not allowed.
    """
    _refuse_what_is_gone(document, path)
    try:
        if not allow_code:
            _refuse_code(document.sources, path)
        sources = _open_again(document.sources, folder)
        if document.kept_trigger is None:
            return sources
        return replace(sources, trigger=InMemory(restore_trigger(document.kept_trigger)))
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: its sources are not in the form that this version writes "
            f"({type(error).__name__}); verify it with bdaudit {document.environment.bdaudit}"
        ) from error


def _open_again(said: Mapping[str, Any], folder: Path) -> Sources:
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name in _TABLES:
            kind, adapter = _TABLES[name]
            values[name] = adapter.validate_python(from_recorded(kind, value))
        elif isinstance(value, Mapping):
            raise TypeError(f"{name}: a table")
        else:
            values[name] = _located(value, folder) if name in _PATHS else value
    options = values["model_options"]
    if options.arch is not None and split_reference(options.arch) is not None:
        values["model_options"] = replace(options, arch=_located(options.arch, folder))
    return Sources.of(**values)


_TABLES: dict[str, tuple[str, TypeAdapter[Any]]] = {
    "model_options": ("ModelSettings", TypeAdapter(ModelSettings)),
    "black_box": ("BlackBoxOptions", TypeAdapter(BlackBoxOptions)),
}


_PATHS = (
    "defended",
    "original",
    "references",
    "surrogates",
    "data",
    "trigger",
    "placebos",
    "classes",
)


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value if is_url(value) else str(folder / value)
    if isinstance(value, Sequence):
        return [_located(inner, folder) for inner in value]
    return value


def _refuse_what_is_gone(document: AuditRecord, path: Path) -> None:
    said = document.sources
    if not said:
        raise RecordError(f"{path}: does not name its sources")
    gone = [name for name, value in said.items() if value == IN_MEMORY]
    if gone == ["trigger"] and document.kept_trigger is not None:
        return
    if gone:
        raise InputError(
            f"{path}: {', '.join(gone)} was passed in memory and cannot be opened again; audit "
            f"files to get a record that can be verified"
        )


def _refuse_code(said: Mapping[str, Any], path: Path) -> None:
    """A record may be a stranger's: it may not run code here, nor send a token somewhere."""
    named = [said.get("defended"), said["model_options"]["arch"]]
    code = [text for text in named if isinstance(parse_model(text), PythonFunction)]
    token = said["black_box"]["transport"]["token_env"]
    wants = [f"run {text}" for text in code]
    if said.get("allow_trigger_code"):
        wants.append("run the Python file of its trigger")
    if token is not None:
        wants.append(f"send the content of ${token} to {said.get('defended')}")
    if wants:
        raise InputError(
            f"{path}: the record would {' and '.join(wants)}; if you trust it pass --trust-record "
            "(allow_code=True)"
        )
