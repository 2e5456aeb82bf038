"""Every option of every command, held against a list that is in the repository.

Rewrite the list after a change that is meant with

    python -m tests.cli.test_options

and look at what changed: an option that is lost, or a default that moved, breaks somebody's script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import typer
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

from bdaudit.cli import app

PINNED = Path(__file__).with_name("options.json")


def commands(group: typer.Typer, *names: str) -> Iterator[tuple[str, Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield " ".join((*names, name)), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, *names, str(inner.typer_instance.info.name))


def plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def type_of(annotation: Any) -> tuple[str | list[str], bool]:
    """Name a type, or list its choices; say whether it may be given several times."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    several = get_origin(annotation) is list
    if several:
        (annotation,) = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [choice.value for choice in annotation], several
    return annotation.__name__, several


def options_of(callback: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for name, parameter in get_params_from_function(callback).items():
        if parameter.annotation is typer.Context:
            continue
        info = parameter.default
        kind, several = type_of(parameter.annotation)
        required = info.default is ...
        own = [] if isinstance(info, ArgumentInfo) else ["--" + name.replace("_", "-")]
        if kind == "bool" and own:
            own = [f"{own[0]}/--no-{own[0][2:]}"]
        said = {
            "kind": "argument" if isinstance(info, ArgumentInfo) else "option",
            "flags": list(info.param_decls or ()) or own,
            "type": kind,
            "several": several,
            "required": required,
            "default": None if required else repr(plain(info.default)),
            "min": info.min,
            "max": info.max,
            "panel": info.rich_help_panel,
            "metavar": info.metavar,
            "hidden": info.hidden,
            "help": bool(info.help),
        }
        found[name] = {k: v for k, v in said.items() if v not in (None, False, [])}
    return dict(sorted(found.items()))


def all_options() -> dict[str, dict[str, dict[str, Any]]]:
    return {name: options_of(callback) for name, callback in sorted(commands(app))}


def as_text(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write one option a line."""
    blocks = [
        f"{json.dumps(command)}: {{\n"
        + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in options.items())
        + "\n}"
        for command, options in found.items()
    ]
    return "{" + ",\n".join(blocks) + "}\n"


def test_no_option_of_any_command_is_lost_or_changed() -> None:
    pinned, now = json.loads(PINNED.read_text()), all_options()
    assert now.keys() == pinned.keys()
    for command, options in now.items():
        assert options.keys() == pinned[command].keys(), command
        for name, option in options.items():
            assert option == pinned[command][name], f"{command}: {name}"


if __name__ == "__main__":
    PINNED.write_text(as_text(all_options()))
