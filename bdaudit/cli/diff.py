"""`bdaudit diff`: what changed since the last release. Nothing is computed on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_FAILED, reporting_errors
from bdaudit.cli.output import JsonSink, files_of_reports, tell_written, write_file
from bdaudit.cli.project import Config
from bdaudit.cli.streams import say, stdout_console, tell

if TYPE_CHECKING:
    from bdaudit.records.difference import DifferenceRecord

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="diff")(diff)


@reporting_errors
def diff(
    old: Annotated[
        Path,
        typer.Argument(
            help="Record of the last release's audit (--json), or its attestation.",
            show_default=False,
        ),
    ],
    new: Annotated[
        Path,
        typer.Argument(help="The same of the next release.", show_default=False),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Limits by which both are judged: a policy or project file \\[default: the "
            "project file's, else those the new record was judged by].",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        list[str] | None,
        typer.Option(
            "--report",
            metavar="FORMAT=FILE",
            help="Also write it as html, md or csv; may be repeated.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            help="Write the difference as JSON to this file, or to stdout with '-'.",
            metavar="FILE|-",
        ),
    ] = None,
    quiet: options.Quiet = False,
    config: Config = None,
    debug: options.Debug = False,
) -> None:
    """Say what changed between two audits: verdict, figures with intervals, inputs.

    Exit code 0: verdict and release are no worse; 1: one of them is; 2: usage;
    4: a record or the policy cannot be used.
    """
    sink = JsonSink(json, quiet=quiet)
    files = files_of_reports(report, ("html", "md", "csv"))

    from bdaudit.records import to_json
    from bdaudit.records.attestations import is_signed
    from bdaudit.report.difference import gist
    from bdaudit.report.difference_terminal import print_difference
    from bdaudit.verdict import diff as find_difference

    made = find_difference(old, new, policy=policy)
    sink.write(to_json(made))
    for name, file in files.items():
        write_file(file, _text_of(name, made))
        if not quiet:
            tell_written(file)
    if not sink.to_stdout:
        if quiet:
            say(gist(made))
        else:
            print_difference(made, stdout_console())
    for path in (old, new):
        if is_signed(path):
            tell(
                f"bdaudit: WARNING: {path}: the attestation's signature was not checked; "
                "bdaudit gate --key checks it"
            )
    for warning in made.new.warnings:
        tell(f"bdaudit: WARNING: {warning}")
    if made.change == "worse":
        raise typer.Exit(EXIT_FAILED)


def _text_of(name: str, made: DifferenceRecord) -> str:
    if name == "csv":
        from bdaudit.report.many_csv import difference_csv

        return difference_csv(made)
    if name == "md":
        from bdaudit.report import difference_markdown

        return difference_markdown.render(made)
    from bdaudit.report import difference_html

    return difference_html.render(made)
