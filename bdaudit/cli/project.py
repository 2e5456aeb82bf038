"""The project file as the defaults of a command; the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli.bundles import telling_old_names
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.streams import tell
from bdaudit.errors import ProjectError

if TYPE_CHECKING:
    from bdaudit.project import Project

__all__ = [
    "Config",
    "TrustConfig",
    "announce_project",
    "comes_from_project",
    "demand_trust",
    "project_of",
]

_KEPT = "bdaudit.project"


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
        known = {parameter.name for parameter in ctx.command.params}
        ctx.default_map = {k: v for k, v in project.options().items() if k in known}
    return path


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


def project_of(ctx: typer.Context) -> Project | None:
    """Return the project file whose values are the defaults of this command."""
    project: Project | None = ctx.meta.get(_KEPT)
    return project


def announce_project(ctx: typer.Context, quiet: bool) -> Path | None:
    """Say on stderr which project file the defaults come from, and return its path."""
    project = project_of(ctx)
    if project is None:
        return None
    if not quiet:
        tell(f"bdaudit: defaults are those of {project.path}")
    return project.path


def comes_from_project(ctx: typer.Context, option: str) -> bool:
    """Say whether the value of `option` is the project file's and not the command line's."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT_MAP"


def demand_trust(ctx: typer.Context, trusted: bool) -> None:
    """Refuse what a project file may only ask for when the user trusts it.

    Raises:
        ProjectError: It asks for such a thing, and the command line does not say otherwise.
    """
    project = project_of(ctx)
    if project is None or trusted:
        return
    for option, reason in project.needs_trust().items():
        if comes_from_project(ctx, option):
            raise ProjectError(
                f"{project.path}: {reason}; read it, and if you trust it pass --trust-config"
            )
