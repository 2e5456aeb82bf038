"""`bdaudit init`: a project file from what lies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import check_writable, write_file
from bdaudit.cli.streams import say, write_document
from bdaudit.errors import InputError

__all__ = ["register"]

_NAME = "bdaudit.toml"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="init")(init)


@reporting_errors
def init(
    folder: Annotated[
        Path, typer.Argument(help="Folder to search, and to write the file to.")
    ] = Path(),
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite an existing bdaudit.toml.")
    ] = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Only print the JSON schema of a project file, for editors."),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Write a commented bdaudit.toml from what is found in a folder, and say what was guessed."""
    if schema:
        from bdaudit.project import json_schema

        write_document(json_schema())
        return
    from bdaudit.project import find_project

    target = folder / _NAME
    present = find_project(folder)
    if present is not None and (present != target or not force):
        remedy = "--force replaces it" if present == target else "edit that"
        raise InputError(f"{present}: already exists; {remedy}")
    check_writable(target)

    from bdaudit.auditing.drafting import draft_project

    draft = draft_project(folder)
    write_file(target, draft.text)
    say(f"wrote {target}")
    for finding in draft.findings:
        value = finding.value if isinstance(finding.value, str) else ", ".join(finding.value)
        say(f"  guessed {finding.key} = {value} ({finding.why})")
    for question in draft.open_questions:
        say(f"  not found {question}")
    if draft.open_questions:
        say(f"fill in what is missing, review the rest, then run: {_next(folder)}")
    else:
        say(f"review it, then run: {_next(folder)}")


def _next(folder: Path) -> str:
    return "bdaudit audit" if folder == Path() else f"bdaudit audit --config {folder / _NAME}"
