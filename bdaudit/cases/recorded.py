"""Settings in a record: under names that stay as they are when a name in Python changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from bdaudit.foundation.plain_settings import is_unsaid

__all__ = ["as_given", "as_recorded", "from_recorded"]

_NAMES = {
    "AuditSettings": {"passes": "n_passes", "mode": "modes", "bec": "measure_bec", "cold": "warm"},
    "SplitSettings": {"craft": "n_craft", "held_out": "n_held_out"},
    "BlackBoxOptions": {"layout": "order", "request_size": "batch_size"},
    "TransportSettings": {"timeout": "timeout_s", "retries": "max_retries"},
}
"""By class, the name in a record of what Python calls otherwise."""

_INSIDE = {
    "AuditSettings": {"compute": "ComputeSettings", "split": "SplitSettings"},
    "BlackBoxOptions": {"transport": "TransportSettings"},
}
"""By class, the settings within it that have such names too."""

_TURNED = ("cold",)
"""Truth values that a record has the other way round."""


def as_recorded(settings: Any, *, unsaid: bool = True) -> dict[str, Any]:
    """Return settings, a dataclass and those within it, as a record has them.

    Args:
        settings: The dataclass.
        unsaid: Whether later settings that are at their default are among them (`is_unsaid`).
    """
    names = _NAMES.get(type(settings).__name__, {})
    recorded: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if not unsaid and is_unsaid(each, value):
            continue
        if is_dataclass(value):
            value = as_recorded(value, unsaid=unsaid)
        elif each.name in _TURNED:
            value = not value
        recorded[names.get(each.name, each.name)] = value
    return recorded


def as_given(settings: Any) -> dict[str, Any]:
    """Return settings as `as_recorded`, without those that are left to what is found.

    A setting that is new and not given leaves a digest of this as it was.
    """
    return _without_none(as_recorded(settings, unsaid=False))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def from_recorded(kind: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record has under the names that the class called `kind` has now.

    What is inside is turned likewise; an unknown name stays, for the reader to refuse.
    """
    names = {then: now for now, then in _NAMES.get(kind, {}).items()}
    settings: dict[str, Any] = {}
    for name, value in recorded.items():
        now = names.get(name, name)
        settings[now] = not value if now in _TURNED else value
    if kind == "ComputeSettings" and "bf16" in settings:
        settings["precision"] = "bfloat16" if settings.pop("bf16") else "float32"
    for name, inner in _INSIDE.get(kind, {}).items():
        if isinstance(settings.get(name), Mapping):
            settings[name] = from_recorded(inner, settings[name])
    return settings
