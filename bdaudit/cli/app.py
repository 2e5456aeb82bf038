"""The `bdaudit` command: its subcommands and its entry point.

Modules of commands import the library inside their functions, so that `bdaudit --help` answers
without loading torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer import rich_utils
from typer.core import TyperGroup

from bdaudit.cli import (
    audit,
    bench,
    compare,
    defend,
    demo,
    diff,
    fairness,
    gate,
    init,
    inspect,
    invert,
    perturbations,
    reactivate,
    relearn,
    report,
    score,
    screen,
    sign,
    sweep,
    trigger,
    verify,
    zoo,
)
from bdaudit.cli.exits import (
    EXIT_INTERRUPTED,
    EXIT_OUTPUT,
    EXIT_OUTPUT_CLOSED,
    EXIT_USAGE,
    exit_of,
)
from bdaudit.cli.once import OnceCommand
from bdaudit.cli.streams import (
    drop_stdout,
    flush_stdout,
    guarded,
    help_console,
    say,
    tell,
)
from bdaudit.errors import OutputError
from bdaudit.plain_text import shortened
from bdaudit.version import __version__

__all__ = ["app", "main"]


class Root(TyperGroup):
    """All commands: what comes in as arguments, and what goes out as text and as exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line and leave with its exit code.

        An argument that typer refuses, an output that cannot be written and an exception that no
        command expected are told in the same way, behind the same guard, as everything else.
        """
        arguments = list(sys.argv[1:] if args is None else args)

        def call() -> Any:
            return super(Root, self).main(
                arguments, "bdaudit", complete_var, False, windows_expand_args, **extra
            )

        with guarded():
            code = _run(arguments, call)
        sys.exit(code)


app = typer.Typer(
    name="bdaudit",
    cls=Root,
    help="Is the backdoor in a cleaned model gone, or only asleep?",
    epilog="Exit codes: 0 removed, 1 active or dormant, 2 usage, 3 inconclusive, "
    "4 unusable input, 70 internal error, 74 or 141 output that cannot be written.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"bdaudit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
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
    diff,
    fairness,
    score,
    reactivate,
    relearn,
    invert,
    screen,
    inspect,
    report,
    bench,
    perturbations,
):
    module.register(app)
app.add_typer(trigger.app)
app.add_typer(zoo.app)
for commands in (app, trigger.app, zoo.app):
    for command in commands.registered_commands:
        command.cls = OnceCommand


def main() -> None:
    """Run the command line; the console script of the package."""
    app()


def _run(arguments: Sequence[str], call: Callable[[], Any]) -> int:
    """Return the exit code of a command line, its output written to the end."""
    try:
        code = _call(arguments, call)
        flush_stdout()
    except OutputError as error:
        code = exit_of(error, debug="--debug" in arguments)
    if code in (EXIT_OUTPUT, EXIT_OUTPUT_CLOSED):
        drop_stdout()
    return code


def _call(arguments: Sequence[str], call: Callable[[], Any]) -> int:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            tell(f"bdaudit: usage: {shortened(argument)}: expected text in UTF-8; rename the file")
            return EXIT_USAGE
    # typer draws its help with this class; `test_streams` sees on a terminal that it does.
    setattr(rich_utils, "Console", help_console)  # noqa: B010 - it is not exported for types
    try:
        returned = call()
    except SystemExit as left:  # of shell completion, which typer does itself
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except Exception as error:
        # typer's own kinds of wrong arguments have no common class that it makes public.
        if not hasattr(error, "format_message"):
            return exit_of(error, debug="--debug" in arguments)
        _tell_usage(error)
        return EXIT_USAGE
    # `typer.Exit` comes back as its code, and a command that ends by itself as nothing.
    return returned if isinstance(returned, int) else 0


def _tell_usage(error: Any) -> None:
    """Print what typer found wrong with the arguments."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help, which is shown by now
        return
    if context is not None:
        tell(context.get_usage())
        tell(f"Try '{context.command_path} --help' for help.")
    tell(f"bdaudit: usage: {error.format_message()}")
