"""`bdaudit inspect`: what is in a checkpoint."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Only, taking_tables
from bdaudit.cli.exits import EXIT_INPUT, reporting_errors
from bdaudit.cli.output import JsonSink
from bdaudit.cli.streams import say, stdout_console
from bdaudit.errors import ModelError
from bdaudit.foundation.opening import demand_there
from bdaudit.foundation.sources import FileSource, RemoteFile, parse_file
from bdaudit.settings import Output

if TYPE_CHECKING:
    from bdaudit.models import Inspection

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="inspect")(inspect)


@reporting_errors
@taking_tables
def inspect(
    *,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or its URL, or a BackdoorBench folder.", show_default=False
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Which weights to describe if the file holds several sets.",
            show_default=False,
        ),
    ] = None,
    read_pickled_module: Annotated[
        bool,
        typer.Option(
            "--read-pickled-module",
            help="Look into a whole pickled module without running it.",
            show_default=False,
        ),
    ] = False,
    output: Annotated[Output, Only("json")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint, whether it is safe to open, and which architecture fits.

    Nothing in the file is executed. Exit code 0: it can be opened (with --read-pickled-module: by
    that option); 4: it cannot.
    """
    sink = JsonSink(output.json_, quiet=quiet)
    named = parse_file(checkpoint)
    if isinstance(named, FileSource):
        demand_there(named.path, what="a checkpoint", error=ModelError)

    from bdaudit.fetching import fetch
    from bdaudit.models import inspect_checkpoint

    found = inspect_checkpoint(
        fetch(named.url) if isinstance(named, RemoteFile) else checkpoint,
        weights=weights,
        read_pickled_module=read_pickled_module,
    )
    sink.write(json_module.dumps(found.to_dict(), indent=2) + "\n")
    if not sink.to_stdout:
        if quiet:
            say(_gist(found))
        else:
            _show(found)
    if not found.is_safe and (found.problem is not None or not read_pickled_module):
        raise typer.Exit(EXIT_INPUT)


def _gist(found: Inspection) -> str:
    if found.problem is not None:
        return found.problem
    if found.wanted_globals:
        return f"{found.path}: wants to run {', '.join(found.wanted_globals)}"
    return f"{found.path}: {found.container}, {found.n_tensors} tensors, safe to open"


def _show(found: Inspection) -> None:
    from rich.table import Table
    from rich.text import Text

    from bdaudit.report.untrusted import shown

    console = stdout_console()
    style = "bold green" if found.is_safe else "bold red"
    console.print(Text("safe to open" if found.is_safe else "NOT to be opened", style=style))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("file", found.path),
        ("size", f"{found.size_bytes:,} bytes"),
        ("sha256", found.file_sha256 or "-"),
    ]
    if found.problem is not None:
        rows.append(("problem", found.problem))
    if found.wanted_globals:
        rows.append(("wants to run", ", ".join(found.wanted_globals) + " (nothing was run)"))
    if found.container is not None:
        dtypes = ", ".join(f"{n} {name}" for name, n in sorted(found.dtypes.items()))
        rows += [
            ("container", found.container),
            ("tensors", f"{found.n_tensors} ({dtypes})"),
            ("parameters", f"{found.n_parameters:,}"),
            ("weights", found.weights_sha256 or "-"),
        ]
    if found.weights is not None:
        rows.append(("of several", found.weights))
    rows += [("not described", key) for key in found.other_weights]
    rows += [("metadata", f"{key} = {value}") for key, value in found.metadata.items()]
    rows += [("note", note) for note in found.notes]
    if found.non_finite:
        rows.append(("not finite", ", ".join(found.non_finite)))
    if found.clip is not None:
        rows.append(("kind", found.clip.describe()))
    for guess in found.guesses:
        fit = "fits" if guess.score == 1.0 else f"{guess.score:.0%} of tensors agree"
        shape = ", ".join(
            f"{what} {n}"
            for what, n in (("classes", guess.num_classes), ("channels", guess.in_channels))
            if n is not None
        )
        rows.append(("architecture", f"{guess.arch} ({fit}{', ' + shape if shape else ''})"))
    if found.clip is not None:
        rows.append(("to open it", _how_to_open_clip(len(found.guesses))))
    elif found.container is not None and not found.guesses:
        rows.append(
            ("architecture", "none known; pass --arch FILE.py:FACTORY to the other commands")
        )
    for name, value in shown(rows):
        table.add_row(name, Text(value))
    console.print(table)


def _how_to_open_clip(n_configs: int) -> str:
    if n_configs == 0:
        return (
            "none of open_clip's configs has these sizes (or open_clip is not installed): "
            "--arch open_clip/NAME --clip-config FOLDER --classnames FILE, with FOLDER/NAME.json"
        )
    several = (
        ", whichever it was trained as: tensors do not tell them apart" if n_configs > 1 else ""
    )
    return f"--arch as above{several}, with --classnames FILE"
