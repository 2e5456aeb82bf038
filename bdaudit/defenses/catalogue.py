"""Every defence by the name it has on the command line and in files.

One line for each; what they share is their call, so that whoever runs one need not know which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from bdaudit.defenses.fine_pruning import FinePruningConfig, fine_prune
from bdaudit.defenses.finetune import FinetuneConfig, finetune
from bdaudit.defenses.fst import FstConfig, feature_shift_tune
from bdaudit.defenses.ft_sam import FtSamConfig, ft_sam
from bdaudit.errors import ConfigError, unknown_key
from bdaudit.progress import Steps

__all__ = ["DEFENSES", "Defense", "defense_config", "defense_of", "flat_settings"]

Setting: TypeAlias = Any
"""A number, a truth value, a text, or a list of such: what TOML and JSON can say."""


@dataclass(frozen=True, slots=True)
class Defense:
    """One defence.

    Attributes:
        name: Its key in `DEFENSES`.
        title: What people read.
        config_type: The dataclass of its settings; built without arguments it has the defaults.
        run: Called as `run(classifier, images, labels, config=..., generator=...)`.
    """

    name: str
    title: str
    config_type: type
    run: Callable[..., Steps[nn.Module]]


_ALL = (
    Defense("finetune", "fine-tuning", FinetuneConfig, finetune),
    Defense("ft-sam", "FT-SAM", FtSamConfig, ft_sam),
    Defense("fine-pruning", "fine-pruning", FinePruningConfig, fine_prune),
    Defense("fst", "FST", FstConfig, feature_shift_tune),
)

DEFENSES: Mapping[str, Defense] = {defense.name: defense for defense in _ALL}


def defense_of(config: object) -> Defense:
    """Return the defence that `config` holds the settings of.

    Raises:
        ConfigError: It is no defence's.
    """
    found = next((one for one in DEFENSES.values() if one.config_type is type(config)), None)
    if found is None:
        raise ConfigError(f"expected the settings of a defence, got {type(config).__name__}")
    return found


def defense_config(name: str, settings: Mapping[str, Setting] | None = None) -> Any:
    """Build the settings of a defence from plain data, as a TOML or JSON file holds it.

    Args:
        name: A key of `DEFENSES`.
        settings: Those that differ from the defaults. A nested group is a table, or is written
            with dots: `{"tuning": {"n_epochs": 3}}` and `{"tuning.n_epochs": 3}` say the same, so
            that what `flat_settings` gives is read back.

    Returns:
        An instance of the defence's `config_type`.

    Raises:
        ConfigError: No such defence or setting, a wrong type, or a value out of range.
    """
    if name not in DEFENSES:
        raise ConfigError(f"defense: {unknown_key(name, DEFENSES)}")
    return _built(DEFENSES[name].config_type, _nested(name, settings or {}), f"defense {name}")


def flat_settings(config: object) -> dict[str, Setting]:
    """List all settings, defaults included, as plain data under dotted names."""
    flat: dict[str, Setting] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": each for key, each in flat_settings(value).items()}
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
                raise ConfigError(f"defense {where}: {first}: both a value and a table")
            inside |= value
        else:
            tables[first] = value
    return tables


def _built(config_type: type, settings: Mapping[str, Setting], where: str) -> Any:
    known = _types_of(config_type)
    values = {}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{where}: {unknown_key(key, known)}")
        expected = known[key]
        if isinstance(expected, type) and dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key}: expected a table, got {value!r}")
            nested = _nested(f"{where}: {key}", value)
            values[key] = _built(expected, nested, f"{where}: {key}")
        else:
            values[key] = _checked(expected, value, f"{where}: {key}")
    try:
        return config_type(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


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
