"""The reference page of the command line, docs/command-line.md, written from the declarations.

python -m bdaudit.cli.reference > docs/command-line.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import typer
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

from bdaudit.cli.streams import write_document

__all__ = ["describe_command", "reference_page"]

_HEAD = """\
# Command line

Every command with all its options. This page is written from the same declarations as `--help`,
the [project file](project-file.md) and its JSON schema. Where "several" stands, an option may be
repeated. The options of `audit`, `score`, `reactivate`, `relearn`, `invert` and `defend` are keys
of the project file by the same names.
"""


def reference_page() -> str:
    """Return the whole page as Markdown."""
    from bdaudit.cli.app import app

    sections = [_HEAD]
    sections += [describe_command(name, callback) for name, callback in _commands(app, "bdaudit")]
    return "\n".join(sections)


def describe_command(name: str, callback: Callable[..., Any]) -> str:
    """Return one command's section: what it does, its arguments, a table of options a panel."""
    panels: dict[str, list[str]] = {}
    arguments: list[str] = []
    for parameter in get_params_from_function(callback).values():
        if parameter.annotation is typer.Context or parameter.default.hidden:
            continue
        info: Any = parameter.default
        told = _in_markdown(info.help or "")
        if isinstance(info, ArgumentInfo):
            metavar = info.metavar or parameter.name.upper()
            several = " ..." if get_origin(_plain(parameter.annotation)) is list else ""
            arguments.append(f"- `{metavar}{several}`: {told}")
        else:
            row = [_flags(parameter), _kind(parameter), _default(parameter), told]
            panels.setdefault(info.rich_help_panel or "Options", []).append(
                f"| {' | '.join(row)} |"
            )
    lines = [f"## {name}", "", inspect.cleandoc(callback.__doc__ or ""), ""]
    lines += [*arguments, ""] if arguments else []
    for panel, rows in panels.items():
        lines += [f"### {panel} ({name.removeprefix('bdaudit ')})", ""]
        lines += ["| option | value | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{prefix} {inner.typer_instance.info.name}")


def _flags(parameter: Any) -> str:
    own = "--" + parameter.name.replace("_", "-")
    given = parameter.default.param_decls or (own,)
    return ", ".join(f"`{flag}`" for text in given for flag in text.split("/"))


def _kind(parameter: Any) -> str:
    info, kind = parameter.default, _plain(parameter.annotation)
    several = get_origin(kind) is list
    if several:
        (kind,) = get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        text = ", ".join(f"`{choice.value}`" for choice in kind)
    elif info.metavar:
        text = f"`{info.metavar}`".replace("|", "\\|")
    else:
        text = {bool: "", int: "whole number", float: "number", Path: "path"}.get(kind, "text")
    if info.min is not None and info.max is not None:
        text += f", {info.min:g} to {info.max:g}"
    elif info.min is not None:
        text += f", {info.min:g} or more"
    return f"{text}; several" if several else text


def _default(parameter: Any) -> str:
    value = parameter.default.default
    if value is ...:
        return "required"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _plain(annotation: Any) -> Any:
    """Return a type without `None`."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _in_markdown(text: str) -> str:
    text = text.replace("\\[", "[").replace("|", "\\|").replace("<", "&lt;")
    # Words in capitals, names with `_` or `*`: as they stand, and no markup.
    return re.sub(r"([*_])", r"\\\1", text)


if __name__ == "__main__":
    write_document(reference_page())
