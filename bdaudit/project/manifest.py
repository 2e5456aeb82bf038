"""From a manifest of many audits to a project file for each."""

from __future__ import annotations

import copy
import glob
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from bdaudit.errors import ProjectError, reads, unknown_key
from bdaudit.foundation.texts import read_toml
from bdaudit.project.reading import Project, check_project, refuse_unknown_keys

__all__ = ["read_manifest"]

_SWEEPS_OWN_TABLES = {
    "defend": "a sweep audits; `bdaudit defend` tries defences",
    "engine": "give --engine and its settings to the sweep",
    "existence": "it is read by `bdaudit score` alone",
}
_SWEEPS_OWN = {
    ("output", "json"): "the sweep names the records itself",
    ("output", "report"): "make reports from the records, with `bdaudit report`",
    ("inversion", "target"): "give inputs.target",
    ("query", "state"): "the sweep keeps what is needed to go on",
    ("surrogates", "cache"): "give --cache to the sweep",
    ("surrogates", "no_cache"): "give --no-cache to the sweep",
}
_MOST_AUDITS = 10_000
_GLOBS = (("inputs", "reference"), ("surrogates", "surrogate"))
"""Lists whose entries may stand for several files."""

Document = dict[str, Any]


@reads(ProjectError)
def read_manifest(path: Path) -> list[tuple[str, Project]]:
    """Read a manifest: audits that are each written like a project file, and what they share.

    `[defaults]` holds tables of a project file; every `[[audit]]` adds to them, key by key. In an
    audit `inputs.defended` may be a list or have `*`, `?`, `[...]` in it and then stands for one
    audit a file; `[audit.matrix]` has lists in place of values, and every combination is an audit.
    Paths are relative to the manifest.

    Returns:
        A name and a project file each, in the manifest's order.

    Raises:
        ProjectError: It cannot be read, has an unknown key, names no file, or gives one name twice.
        PolicyError: A policy in it cannot hold.
    """
    document = read_toml(path, what="a manifest", error=ProjectError)
    for key in document:
        if key not in ("defaults", "audit"):
            raise ProjectError(f"{path}: {unknown_key(key, ('defaults', 'audit'))}")
    defaults, entries = document.get("defaults", {}), document.get("audit", [])
    if not isinstance(entries, list) or not entries or not isinstance(defaults, Mapping):
        raise ProjectError(f"{path}: expected one [[audit]] or more, and [defaults.TABLE] tables")
    read: dict[str, Project] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: audit {number}"
        if not isinstance(entry, Mapping):
            raise ProjectError(f"{where}: expected a table, got {entry!r}")
        for name, one in _expand(_merged(defaults, entry), path.parent, where):
            if name in read:
                raise ProjectError(
                    f"{where}: a second audit is called {name!r}; give each its own name"
                )
            if len(read) == _MOST_AUDITS:
                raise ProjectError(f"{where}: expected at most {_MOST_AUDITS} audits in a sweep")
            read[name] = check_project(one, path, where=f"{where} ({name})")
    return list(read.items())


def _merged(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> Document:
    merged = copy.deepcopy(dict(defaults))
    for table, values in entry.items():
        if isinstance(values, Mapping) and isinstance(merged.get(table), Mapping):
            merged[table] = {**merged[table], **values}
        else:
            merged[table] = values
    return merged


def _expand(entry: Document, folder: Path, where: str) -> Iterator[tuple[str, Document]]:
    """Give every audit that an entry stands for its name."""
    given_name, matrix = entry.pop("name", None), entry.pop("matrix", {})
    if not isinstance(given_name, str | None):
        raise ProjectError(f"{where}: name: expected a text, got {given_name!r}")
    _refuse_the_sweeps_own(entry, where)
    for table, key in _GLOBS:
        values = entry.get(table)
        if isinstance(values, Mapping) and isinstance(values.get(key), list):
            found = [f for value in values[key] for f in _files(value, folder, where)]
            entry[table] = {**values, key: found}
    inputs = entry.get("inputs", {})
    defended = inputs.get("defended") if isinstance(inputs, Mapping) else None
    several = defended if isinstance(defended, list) else [defended]
    candidates = [file for value in several for file in _files(value, folder, where)]
    stems = _stems(candidates)
    combinations = list(_combinations(matrix, where))
    for (candidate, stem), combination in itertools.product(
        zip(candidates, stems, strict=True), combinations
    ):
        one = copy.deepcopy(entry)
        if candidate is not None:
            one["inputs"]["defended"] = candidate
        for (table, key), value in combination:
            values = one.setdefault(table, {})
            if not isinstance(values, Mapping):
                raise ProjectError(f"{where}: {table}: expected a table, got {values!r}")
            one[table] = {**values, key: value}
        parts = [given_name] if given_name is not None else []
        if stem is not None and (given_name is None or len(candidates) > 1):
            parts.append(stem)
        parts += [f"{key}-{_in_a_name(value)}" for (_, key), value in combination]
        name = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-._")
        if not name:
            raise ProjectError(f"{where}: needs a name, since no file gives it one")
        yield name, one


def _refuse_the_sweeps_own(entry: Document, where: str) -> None:
    refuse_unknown_keys(entry, where)
    for table, values in entry.items():
        for key in values if isinstance(values, Mapping) else ():
            instead = _SWEEPS_OWN_TABLES.get(table) or _SWEEPS_OWN.get((table, key))
            if instead is not None:
                raise ProjectError(f"{where}: {table}.{key}: not in a manifest; {instead}")


def _files(value: Any, folder: Path, where: str) -> list[Any]:
    """Return the files that a path with wildcards stands for, and all else as it is."""
    if not isinstance(value, str) or "://" in value or not glob.has_magic(value):
        return [value]
    if Path(value).is_absolute():
        raise ProjectError(f"{where}: {value}: expected wildcards relative to the manifest")
    try:
        if (folder / value).exists():
            return [value]
        found = sorted(file.relative_to(folder) for file in folder.glob(value))
    # Such as "**x", a NUL, a name too long, or ".." in a pattern.
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise ProjectError(
            f"{where}: {value!r}: expected a path with wildcards: {error}"
        ) from error
    if not found:
        raise ProjectError(f"{where}: {value}: no such file in {folder}")
    return [file.as_posix() for file in found]


def _stems(candidates: list[Any]) -> list[str | None]:
    """Name files by their stems, with folders before them where stems are alike."""
    paths = [PurePath(c) if isinstance(c, str) else None for c in candidates]
    stems = [None if p is None else p.stem for p in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [None if p is None else p.with_suffix("").as_posix() for p in paths]


def _combinations(matrix: Any, where: str) -> Iterator[tuple[tuple[tuple[str, str], Any], ...]]:
    axes = []
    for table, keys in matrix.items() if isinstance(matrix, Mapping) else ():
        if not isinstance(keys, Mapping):
            raise ProjectError(f"{where}: matrix.{table}: expected a table of lists, got {keys!r}")
        for key, values in keys.items():
            if (table, key) == ("inputs", "defended"):
                raise ProjectError(f"{where}: matrix: give inputs.defended itself as a list")
            if not isinstance(values, list) or not values:
                raise ProjectError(
                    f"{where}: matrix.{table}.{key}: expected a list of values, got {values!r}"
                )
            axes.append([((table, key), value) for value in values])
    if math.prod(len(axis) for axis in axes) > _MOST_AUDITS:
        raise ProjectError(f"{where}: matrix: expected at most {_MOST_AUDITS} combinations")
    yield from itertools.product(*axes)


def _in_a_name(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(_in_a_name(inner) for inner in value)
    return PurePath(value).stem if isinstance(value, str) and "/" in value else str(value)
