"""`bdaudit report`: redraw a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Without, taking_tables
from bdaudit.cli.exits import exit_by, reporting_errors
from bdaudit.cli.output import JsonSink, ReportSinks, show_record
from bdaudit.settings import Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="report")(report)


@reporting_errors
@taking_tables
def report(
    *,
    record: Annotated[Path, typer.Argument(help="A record that --json wrote.", show_default=False)],
    output: Annotated[Output, Without("pictures")],
    merge: Annotated[
        Path | None,
        typer.Option(
            help="File to put the cyclonedx, openvex or model-card report into; only read.",
            show_default=False,
        ),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Redraw a record; of an audit, with the exit code of its verdict. Nothing is computed."""
    from bdaudit.records import AuditRecord, read_record, using_record

    sink = JsonSink(output.json_, quiet=quiet)
    report_sinks = ReportSinks(output.report, json=sink, merge=merge)
    document = read_record(record)
    report_sinks.demand_kind(document.kind)
    with using_record(record):
        show_record(document, sink=sink, quiet=quiet, reports=report_sinks)
    if isinstance(document, AuditRecord) and document.verdict is not None:
        exit_by(document.verdict)
