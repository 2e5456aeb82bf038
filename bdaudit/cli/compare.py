"""`bdaudit compare`: several defended versions of one original side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Default, InPanel, Only, Reworded, Single, taking_tables
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, files_of_reports, tell_written, write_file
from bdaudit.cli.streams import stdout_console
from bdaudit.errors import ConfigError
from bdaudit.settings import Attack, Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="compare")(compare)


@reporting_errors
@taking_tables
def compare(
    *,
    records: Annotated[
        list[Path],
        typer.Argument(help="Records of audits (--json), two or more.", show_default=False),
    ],
    attack: Annotated[
        Attack,
        Only("eps", "mode"),
        Single("eps", "mode"),
        InPanel(None),
        Reworded(eps="Radius to compare at.", mode="Kind of attack."),
        Default(eps="the common one with the largest lift", mode="the first that all records have"),
    ],
    report: Annotated[
        list[str] | None,
        typer.Option(
            "--report",
            metavar="FORMAT=FILE",
            help="Also write the comparison as html or csv; may be repeated.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Output, Only("json")],
    debug: options.Debug = False,
) -> None:
    """Show which of several defences of one original really worked. Nothing is computed."""
    if attack.eps is not None and len(attack.eps) != 1:
        raise ConfigError(f"--eps: expected one radius, got {attack.eps}")
    sink = JsonSink(output.json_)
    files = files_of_reports(report, ("html", "csv"))

    from bdaudit.records import demand_audit, read_record, to_json, using_record
    from bdaudit.report.comparison import compare as put_side_by_side
    from bdaudit.report.comparison_terminal import print_comparison

    read = [(str(path), demand_audit(read_record(path), path)) for path in records]
    with using_record(" or ".join(map(str, records))):
        made = put_side_by_side(
            read,
            mode=attack.mode[0] if attack.mode else None,
            eps=attack.eps[0] if attack.eps else None,
        )
    sink.write(to_json(made))
    if "html" in files:
        from bdaudit.report.comparison_html import render

        write_file(files["html"], render(made))
    if "csv" in files:
        from bdaudit.report.many_csv import comparison_csv

        write_file(files["csv"], comparison_csv(made))
    for file in files.values():
        tell_written(file)
    if not sink.to_stdout:
        print_comparison(made, stdout_console())
