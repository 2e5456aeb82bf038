"""From a project file to values for the options of a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bdaudit.errors import ProjectError, unknown_key
from bdaudit.opening import is_file
from bdaudit.project.schema import (
    Code,
    Joined,
    Location,
    ProjectFile,
    Table,
    Trusted,
    Written,
    WrittenAs,
)
from bdaudit.texts import read_toml
from bdaudit.usercode import split_reference
from bdaudit.verdict.policy import Policy, parse_policy

__all__ = ["Project", "check_project", "find_project", "read_project", "refuse_unknown_keys"]

_OWN_NAME = "bdaudit.toml"
_SHARED_NAME = "pyproject.toml"


@dataclass(frozen=True)
class Project:
    """A project file that was read.

    Attributes:
        path: The file.
        file: What it says, its paths as they are written.
    """

    path: Path
    file: ProjectFile

    def options(self) -> dict[str, Any]:
        """Return what the file says by name of `bdaudit audit`'s options.

        Paths are relative to the working folder, as those of the command line are. A list is one
        where the command takes an option several times. A policy that stands in the file itself
        is given by the file's path, which `read_policy` understands.
        """
        options = {key.option: self._as_option(key) for key in _keys(self.file)}
        if isinstance(self.file.policy, Policy):
            options["policy"] = str(self.path)
        elif self.file.policy is not None:
            options["policy"] = self._locate(self.file.policy)
        return options

    def needs_trust(self) -> dict[str, str]:
        """Name the options that are only followed in a file one trusts, each with the reason.

        A project file is found in the working folder, and that may be somebody else's: it may not
        run code, send secrets, or write elsewhere, unless the user says so.
        """
        return {
            key.option: f"{key.name} {why}"
            for key in _keys(self.file)
            if (why := self._harm(key)) is not None
        }

    def _harm(self, key: _Key) -> str | None:
        for mark in key.marks:
            if isinstance(mark, Trusted) and key.value is not False:
                return mark.why
            if isinstance(mark, Code) and (code := split_reference(str(key.value))) is not None:
                return f"runs the Python file {code[0]}"
            if isinstance(mark, Written) and self._is_outside(str(key.value)):
                return f"writes outside the project's folder, to {key.value}"
            if isinstance(mark, WrittenAs):
                files = [str(entry).partition("=")[2] for entry in key.value]
                outside = next(filter(self._is_outside, files), None)
                if outside is not None:
                    return f"writes outside the project's folder, to {outside}"
        return None

    def _is_outside(self, path: str) -> bool:
        folder = self.path.parent
        return not (folder / path).resolve().is_relative_to(folder.resolve())

    def _as_option(self, key: _Key) -> Any:
        if isinstance(key.value, list):
            texts = [self._as_text(item, key) for item in key.value]
            return ",".join(texts) if _has(key, Joined) else texts
        if isinstance(key.value, bool):
            return key.value
        return self._as_text(key.value, key)

    def _as_text(self, value: Any, key: _Key) -> str:
        text = str(value)
        if _has(key, Location) or _has(key, Written):
            return self._locate(text)
        if _has(key, Code) and split_reference(text) is not None:
            return self._locate(text)
        if _has(key, WrittenAs):
            name, equals, file = text.partition("=")
            return f"{name}{equals}{file if file in ('', '-') else self._locate(file)}"
        return text

    def _locate(self, text: str) -> str:
        return text if "://" in text else str(self.path.parent / text)


@dataclass(frozen=True)
class _Key:
    """A key that the file sets: its name in the file, the option it is for, value and marks."""

    name: str
    option: str
    value: Any
    marks: tuple[Any, ...]


def _keys(file: ProjectFile) -> Iterator[_Key]:
    for table_name in ProjectFile.model_fields:
        table = getattr(file, table_name)
        if not isinstance(table, Table):
            continue
        for attribute, field in type(table).model_fields.items():
            value = getattr(table, attribute)
            if value is not None:
                option = field.alias or attribute
                yield _Key(f"{table_name}.{option}", option, value, tuple(_marks(field)))


def _marks(field: FieldInfo) -> Iterator[Any]:
    """Collect the marks of a field, however deep in unions and lists its annotation has them."""
    pending: list[Any] = [field.annotation, *field.metadata]
    while pending:
        part = pending.pop()
        if isinstance(part, Code | Joined | Location | Trusted | Written | WrittenAs):
            yield part
        pending += getattr(part, "__metadata__", ())
        pending += getattr(part, "__args__", ())


def _has(key: _Key, kind: type) -> bool:
    return any(isinstance(mark, kind) for mark in key.marks)


def find_project(folder: Path) -> Path | None:
    """Return the project file of `folder`, `None` when it has none.

    Raises:
        ProjectError: There are two.
    """
    own, shared = folder / _OWN_NAME, folder / _SHARED_NAME
    has_own, has_shared = is_file(own), is_file(shared) and _is_in_pyproject(shared)
    if has_own and has_shared:
        raise ProjectError(
            f"{own} and [tool.bdaudit] in {shared}: expected one project file; remove one, or "
            "choose by --config"
        )
    return own if has_own else shared if has_shared else None


def _is_in_pyproject(path: Path) -> bool:
    """Look for [tool.bdaudit]; a pyproject.toml that is no TOML is not ours to complain of."""
    try:
        document = read_toml(path, what="a project file", error=ProjectError)
    except ProjectError:
        return False
    tool = document.get("tool")
    return isinstance(tool, Mapping) and "bdaudit" in tool


def read_project(path: str | Path | None = None) -> Project:
    """Read a project file.

    Args:
        path: `bdaudit.toml`, a `pyproject.toml` with `[tool.bdaudit]`, or a TOML file of another
            name; `None` takes the one in the working folder.

    Raises:
        ProjectError: There is none, it is not TOML, has an unknown key (the nearest known one is
            named) or a value of the wrong type.
        PolicyError: Its policy cannot hold.
    """
    if path is None:
        path = find_project(Path())
        if path is None:
            raise ProjectError(f"no {_OWN_NAME} here; `bdaudit init` writes one")
    path = Path(path)
    document: Any = read_toml(path, what="a project file", error=ProjectError)
    if path.name == _SHARED_NAME:
        for name in ("tool", "bdaudit"):
            document = document.get(name)
            if not isinstance(document, Mapping):
                raise ProjectError(f"{path}: has no [tool.bdaudit] in it")
    return check_project(document, path)


def check_project(document: Mapping[str, Any], path: Path, *, where: str | None = None) -> Project:
    """Make a project of a document that was read.

    Args:
        document: Tables as TOML gives them.
        path: The file, which its paths are relative to.
        where: What errors call it; `None` for the file's path.

    Raises:
        ProjectError: It has an unknown key (the nearest known one is named) or a value of the wrong
            type.
        PolicyError: Its policy cannot hold.
    """
    where = str(path) if where is None else where
    refuse_unknown_keys(document, ProjectFile, where)
    if isinstance(document.get("policy"), Mapping):
        parse_policy(document["policy"], where)
    try:
        return Project(path, ProjectFile.model_validate(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _UNION_PARTS)
        raise ProjectError(f"{where}: {place}: {first['msg']}, got {first['input']!r}") from error


_UNION_PARTS = ("str", "float", "int", "list")
"""What pydantic adds to the place of an error inside a union."""


def refuse_unknown_keys(values: Mapping[str, Any], table: type[BaseModel], where: str) -> None:
    """Refuse keys that a table, or one within it, does not have.

    Raises:
        ProjectError: There is one; the nearest known one is named.
    """
    known = {field.alias or name: field for name, field in table.model_fields.items()}
    for key, value in values.items():
        if key not in known:
            raise ProjectError(f"{where}: {unknown_key(key, known)}{_elsewhere(key)}")
        inner = known[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Table):
            refuse_unknown_keys(value, inner, f"{where}: {key}")


def _elsewhere(key: str) -> str:
    """Point to the table that does know `key`."""
    for name, field in ProjectFile.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, Table):
            names = [inner.alias or own for own, inner in table.model_fields.items()]
            if key in names:
                return f" ({key!r} belongs in [{name}])"
    return ""
