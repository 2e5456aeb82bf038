"""From a project file to values for the options of a command."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bdaudit.errors import ConfigError, ProjectError, reads, unknown_key
from bdaudit.foundation.opening import is_file
from bdaudit.foundation.texts import read_toml
from bdaudit.foundation.usercode import split_reference
from bdaudit.project.schema import TABLES, ProjectFile, in_list, is_list, keys_of, project_model
from bdaudit.settings import Declared
from bdaudit.settings.declaring import (
    Code,
    Location,
    Trusted,
    Written,
    WrittenAs,
)
from bdaudit.verdict.policy import Policy, parse_policy

__all__ = ["Project", "check_project", "find_project", "read_project", "refuse_unknown_keys"]

_OWN_NAME = "bdaudit.toml"
_SHARED_NAME = "pyproject.toml"


@dataclass(frozen=True)
class Project:
    """A project file that was read.

    Attributes:
        path: The file.
        file: What it says, its paths as they are written; the rest at its defaults.
        given: What it says itself, by table and key, as TOML has it.
    """

    path: Path
    file: ProjectFile
    given: Mapping[str, Mapping[str, Any]]

    def options(self, tables: Collection[str] = ()) -> dict[str, Any]:
        """Return what the file says, by name of the command line's options.

        Paths are relative to the working folder, as those of the command line are. A list is one
        where the command takes an option several times. A policy that stands in the file itself
        is given by the file's path, which `read_policy` understands.

        Args:
            tables: Those that the command takes. Without them all are read, and of two tables with
                the same key (`passes` and `target` are also in `inversion`) the first holds.
        """
        options: dict[str, Any] = {}
        taken = [name for name in self.given if not tables or name in tables]
        for key in _keys({name: self.given[name] for name in reversed(taken)}):
            now = key.declared.option.now
            if now is None:
                options[key.declared.key] = self._as_option(key)
            else:
                # Under its new name, so that the command line wins by that.
                name, value = now(key.value)
                options.setdefault(name, value)
        if isinstance(self.file.policy, Policy):
            options["policy"] = str(self.path)
        elif self.file.policy is not None:
            options["policy"] = self._locate(self.file.policy)
        return options

    def located(self) -> ProjectFile:
        """Return what the file says, its paths as seen from the working folder."""
        tables = {
            name: _table(name, {k.declared.key: self._located(k) for k in _keys({name: values})})
            for name, values in self.given.items()
        }
        policy = self.file.policy
        if isinstance(policy, str):
            policy = self._locate(policy)
        return replace(self.file, **tables, policy=policy)

    def needs_trust(self) -> dict[str, str]:
        """Name the options that are only followed in a file one trusts, each with the reason.

        A project file is found in the working folder, and that may be somebody else's: it may not
        run code, send secrets, or write elsewhere, unless the user says so.
        """
        return {
            key.declared.key: f"{key.name} {why}"
            for key in _keys(self.given)
            if (why := self._harm(key)) is not None
        }

    def _harm(self, key: _Key) -> str | None:
        for mark in key.declared.option.marks:
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
        """Write a value as the command line has it."""
        value, form = self._located(key), key.declared.option.form
        if isinstance(value, list):
            texts = [str(item) for item in value]
            return texts if form is None or form.repeated else ",".join(texts)
        return value if isinstance(value, bool) else str(value)

    def _located(self, key: _Key) -> Any:
        """Return a value with its path, if it is one, as seen from the working folder."""
        if isinstance(key.value, list):
            return [self._seen_from_here(item, key.declared) for item in key.value]
        return self._seen_from_here(key.value, key.declared)

    def _seen_from_here(self, value: Any, declared: Declared) -> Any:
        if not isinstance(value, str):
            return value
        if declared.has(Location) or declared.has(Written):
            return self._locate(value)
        if declared.has(Code) and split_reference(value) is not None:
            return self._locate(value)
        if declared.has(WrittenAs):
            name, equals, file = value.partition("=")
            return f"{name}{equals}{file if file in ('', '-') else self._locate(file)}"
        return value

    def _locate(self, text: str) -> str:
        return text if "://" in text else str(self.path.parent / text)


@dataclass(frozen=True)
class _Key:
    """A key that the file sets: its full name, how it is declared, and its value."""

    name: str
    declared: Declared
    value: Any


def _keys(given: Mapping[str, Mapping[str, Any]]) -> Iterator[_Key]:
    for name, values in given.items():
        known = keys_of(TABLES[name])
        for key, value in values.items():
            yield _Key(f"{name}.{key}", known[key], value)


def _whole_lists(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = keys_of(TABLES[name])
    return {k: in_list(value) if is_list(known[k]) else value for k, value in values.items()}


def _table(name: str, values: Mapping[str, Any]) -> Any:
    """Build a table of what a file says in it."""
    known = keys_of(TABLES[name])
    read = {known[key].attribute: _read(known[key], value) for key, value in values.items()}
    return TABLES[name](**read)


def _read(declared: Declared, value: Any) -> Any:
    try:
        return declared.read(value)
    except ConfigError as error:
        raise ConfigError(f"{declared.key}: {error}") from error


@reads(ProjectError)
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


@reads(ProjectError)
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
    refuse_unknown_keys(document, where)
    if isinstance(document.get("policy"), Mapping):
        parse_policy(document["policy"], where)
    try:
        checked: Any = project_model().model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _UNION_PARTS)
        raise ProjectError(f"{where}: {place}: {first['msg']}, got {first['input']!r}") from error
    given = {name: _whole_lists(name, document[name]) for name in TABLES if name in document}
    tables: dict[str, Any] = {}
    for name, values in given.items():
        try:
            tables[name] = _table(name, values)
        except ConfigError as error:
            raise ProjectError(f"{where}: {name}: {error}") from error
    return Project(path, ProjectFile(**tables, policy=checked.policy), given)


_UNION_PARTS = ("str", "float", "int", "list")
"""What pydantic adds to the place of an error inside a union."""


def refuse_unknown_keys(document: Mapping[str, Any], where: str) -> None:
    """Refuse tables and keys that a project file does not have.

    Raises:
        ProjectError: There is one; the nearest known one is named.
    """
    for name, values in document.items():
        if name not in (*TABLES, "policy"):
            raise ProjectError(
                f"{where}: {unknown_key(name, (*TABLES, 'policy'))}{_elsewhere(name)}"
            )
        if name not in TABLES or not isinstance(values, Mapping):
            continue
        known = keys_of(TABLES[name])
        for key in values:
            if key not in known:
                raise ProjectError(f"{where}: {name}: {unknown_key(key, known)}{_elsewhere(key)}")


def _elsewhere(key: str) -> str:
    """Point to the table that does know `key`."""
    for name, table in TABLES.items():
        if key in keys_of(table):
            return f" ({key!r} belongs in [{name}])"
    return ""
