"""Settings of a step as plain data: frozen dataclasses from TOML or JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeAlias, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bdaudit.errors import ConfigError, unknown_key

__all__ = ["LATER", "Setting", "config_from", "flat_settings", "is_unsaid", "keyed_settings"]

LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""Metadata of a setting that came when work was already kept under keys of the others.

At its default it is no part of a key, so that what was kept before it came is still found.
"""

Setting: TypeAlias = Any
"""A number, a truth value, a text, or a list of such: what TOML and JSON can say."""


def config_from(config_type: type, settings: Mapping[str, Setting], where: str) -> Any:
    """Build a dataclass of settings from plain data, as a TOML or JSON file holds it.

    Args:
        config_type: A dataclass that validates itself; nested ones are settings of their own.
        settings: Those that differ from the defaults. A nested group is a table, or is written
            with dots, so that what `flat_settings` gives is read back.
        where: What errors call it ("defense ft-sam").

    Raises:
        ConfigError: No such setting, a wrong type, or a value out of range.
    """
    known = _types_of(config_type)
    values = {}
    for key, value in _nested(where, settings).items():
        if key not in known:
            raise ConfigError(f"{where}: {unknown_key(key, known)}")
        expected = known[key]
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key}: expected a table, got {value!r}")
            # What is not given stays as the outer settings have it, not as the nested type has it.
            default = _default_of(config_type, key)
            start = {} if default is None else flat_settings(default)
            values[key] = config_from(expected, {**start, **value}, f"{where}: {key}")
        else:
            values[key] = _checked(expected, value, f"{where}: {key}")
    try:
        return config_type(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def flat_settings(config: object, *, unsaid: bool = True) -> dict[str, Setting]:
    """List all settings, defaults included, as plain data under dotted names.

    Args:
        config: A dataclass of settings.
        unsaid: Whether later settings that are at their default are listed (`is_unsaid`).
    """
    flat: dict[str, Setting] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if not unsaid and is_unsaid(field, value):
            continue
        if dataclasses.is_dataclass(value):
            inner = flat_settings(value, unsaid=unsaid)
            flat |= {f"{field.name}.{key}": each for key, each in inner.items()}
        else:
            flat[field.name] = list(value) if isinstance(value, tuple) else value
    return flat


def _nested(where: str, settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Turn dotted names into tables."""
    tables: dict[str, Setting] = {}
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            inside = tables.setdefault(first, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"{where}: {first}: both a value and a table")
            inside |= value
        else:
            tables[first] = value
    return tables


def _default_of(config_type: type, key: str) -> object | None:
    return _default(next(one for one in dataclasses.fields(config_type) if one.name == key))


def _default(field: dataclasses.Field[Any]) -> object | None:
    if field.default_factory is not dataclasses.MISSING:
        made: object = field.default_factory()
        return made
    return None if field.default is dataclasses.MISSING else field.default


@cache
def _types_of(config_type: type) -> dict[str, Any]:
    hints = get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def _checked(expected: Any, value: Setting, where: str) -> Setting:
    if isinstance(value, list):  # JSON and TOML know no tuples
        value = tuple(value)
    try:
        return TypeAdapter(expected, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}: {first['msg']}, got {value!r}") from error


def is_unsaid(field: dataclasses.Field[Any], value: object) -> bool:
    """Return whether a field is a later setting (`LATER`) that is at its default."""
    if "later" not in field.metadata:
        return False
    return bool(value == _default(field))


def keyed_settings(config: object) -> dict[str, Setting]:
    """List settings under their names, nested, without later ones that are at their default."""
    return {
        field.name: keyed_settings(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if not is_unsaid(field, value := getattr(config, field.name))
    }
