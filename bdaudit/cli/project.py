"""The project file as the defaults of a command; the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bdaudit.cli.bundles import NotFromFile, Single, bundles_of, telling_old_names
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.streams import tell
from bdaudit.errors import ProjectError
from bdaudit.settings import Table

if TYPE_CHECKING:
    from bdaudit.project import Project

__all__ = ["Config", "TrustConfig", "comes_from_project", "table_of", "use_project"]

_KEPT = "bdaudit.project"
_TOO_MANY = "bdaudit.project.too_many"

_Table = TypeVar("_Table", bound=Table)


@reporting_errors
def _use_as_defaults(ctx: typer.Context, path: Path | None) -> Path | None:
    """Read the project file before any other option is looked at."""
    from bdaudit.project import find_project, read_project

    if ctx.resilient_parsing:
        return path
    if path is None:
        path = find_project(Path())
    if path is not None:
        with telling_old_names():
            project = read_project(path)
        ctx.meta[_KEPT] = project
        ctx.default_map, ctx.meta[_TOO_MANY] = _defaults(ctx, project)
    return path


def _defaults(ctx: typer.Context, project: Project) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options that the file gives a command, and what it gives too many values of.

    Where a command takes one value of what the file has several of, the first stands in for them
    until it is known whether the command line gives another.
    """
    from bdaudit.project.schema import TABLES

    too_many: dict[str, str] = {}
    bundles = {bundle.table: bundle for bundle in bundles_of(ctx.command.callback)}
    names = {table: name for name, table in TABLES.items() if table in bundles}
    options = project.options(names.values())
    for table, name in names.items():
        for key in bundles[table].named(NotFromFile):
            options.pop(key, None)
        for key in bundles[table].named(Single):
            values = options.pop(key, None)
            if isinstance(values, list) and values:
                options[key] = values[0]
                if len(values) > 1:
                    too_many[key] = f"{name}.{key}: expected one value, got {', '.join(values)}"
    known = {parameter.name for parameter in ctx.command.params}
    return {key: value for key, value in options.items() if key in known}, too_many


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Project file with defaults for all options \\[default: bdaudit.toml, or "
        "\\[tool.bdaudit] of pyproject.toml, in this folder].",
        show_default=False,
        is_eager=True,
        callback=_use_as_defaults,
    ),
]
TrustConfig = Annotated[
    bool,
    typer.Option(
        "--trust-config",
        help="Let the project file run Python files, name a token's variable, and write outside "
        "its folder. Only for a file you have read.",
    ),
]


def use_project(ctx: typer.Context, *, trusted: bool, quiet: bool) -> Path | None:
    """Check what the project file asks of this command, and say on stderr that it is used.

    Returns:
        The file's path, `None` without a project file.

    Raises:
        ProjectError: It asks for what only a trusted file may ask for, or gives several values
            where the command takes one, and the command line does not say otherwise.
    """
    project: Project | None = ctx.meta.get(_KEPT)
    if project is None:
        return None
    for option, reason in project.needs_trust().items():
        if not trusted and comes_from_project(ctx, option):
            raise ProjectError(
                f"{project.path}: {reason}; read it, and if you trust it pass --trust-config"
            )
    for option, problem in ctx.meta[_TOO_MANY].items():
        if comes_from_project(ctx, option):
            raise ProjectError(f"{project.path}: {problem}; choose one by --{option}")
    if not quiet:
        tell(f"bdaudit: using settings from {project.path}")
    return project.path


def comes_from_project(ctx: typer.Context, option: str) -> bool:
    """Return whether the value of `option` is the project file's and not the command line's."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT_MAP"


def table_of(ctx: typer.Context, table: type[_Table]) -> _Table:
    """Return a table that the project file sets for a step of this command, which has no options.

    `bdaudit audit` has no option for how relearning is measured, but follows [relearning]. Such a
    table holds no path.
    """
    project: Project | None = ctx.meta.get(_KEPT)
    if project is None:
        return table()
    return next(value for value in vars(project.file).values() if isinstance(value, table))
