"""The `bdaudit` command: its subcommands and its entry point.

Modules of commands import the library inside their functions, so that `bdaudit --help` answers
without loading torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bdaudit.cli import (
    audit,
    bench,
    compare,
    defend,
    demo,
    gate,
    init,
    inspect,
    invert,
    reactivate,
    relearn,
    report,
    score,
    sign,
    sweep,
    trigger,
    verify,
    zoo,
)
from bdaudit.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="bdaudit",
    help="Is the backdoor in a cleaned model gone, or only asleep?",
    epilog="Exit codes: 0 removed, 1 active or dormant, 2 usage, 3 inconclusive, "
    "4 unusable input, 70 internal error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bdaudit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and leave.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Is the backdoor in a cleaned model gone, or only asleep?"""


for module in (
    demo,
    init,
    audit,
    defend,
    gate,
    verify,
    sign,
    sweep,
    compare,
    score,
    reactivate,
    relearn,
    invert,
    inspect,
    report,
    bench,
):
    module.register(app)
app.add_typer(trigger.app)
app.add_typer(zoo.app)


def main() -> None:
    """Run the command line; the console script of the package."""
    app()
