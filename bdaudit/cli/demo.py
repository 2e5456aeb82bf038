"""`bdaudit demo`: the whole job on embedded real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Only, Without, taking_tables
from bdaudit.cli.exits import EXIT_INTERNAL, reporting_errors
from bdaudit.cli.output import JsonSink, ReportSinks
from bdaudit.cli.streams import say, stdout_console, tell, write_document
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Compute, Output

if TYPE_CHECKING:
    from bdaudit.records import AuditRecord

__all__ = ["register"]

_INTRO = (
    "Ten kinds of clothing, one backdoor: a small patch in the corner turns anything into class 0 "
    "for original.safetensors. Two defences were run on it; with each the patch alone no longer "
    "works. Is the backdoor gone?"
)

_NEXT = """\
To a test of the trigger alone both models look equally clean. The same on the files themselves:

  bdaudit demo --export demo && cd demo
  bdaudit audit dormant.safetensors --original original.safetensors \\
    --data clean.npz --trigger trigger.toml --reference innocent-1.safetensors \\
    --reference innocent-2.safetensors --reference innocent-3.safetensors"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="demo")(demo)


@reporting_errors
@taking_tables
def demo(
    *,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Only write the demonstration's files to this new folder, to experiment with."
        ),
    ] = None,
    compute: Annotated[Compute, Only("device", "seed")],
    output: Annotated[Output, Without("pictures")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Audit two small real models that both look clean. No download; minutes on a CPU.

    A report's file name gets the model's name: --report html=demo.html writes demo-dormant.html
    and demo-removed.html.
    """
    from bdaudit.auditing.demo import DEMO_MODELS, demo_steps, export_demo

    sink = JsonSink(output.json_, quiet=quiet)
    report_sinks = ReportSinks(output.report, json=sink)
    if export is not None:
        for path in export_demo(export):
            say(path)
        return

    from bdaudit.foundation.progress import finish

    console = stdout_console()
    if not (quiet or sink.to_stdout or report_sinks.to_stdout):
        console.print(_INTRO + "\n")
    with showing_progress(quiet) as listener:
        records = finish(demo_steps(seed=compute.seed, device=compute.device), listener)
    sink.write(_as_json(records))
    if not (sink.to_stdout or report_sinks.to_stdout):
        _show(records, quiet)
    for name, record in records.items():
        report_sinks.write(record, variant=name)
    verdicts = {name: r.verdict.outcome for name, r in records.items() if r.verdict is not None}
    if verdicts != {name: name for name in DEMO_MODELS}:
        tell(f"bdaudit: the demonstration gave unexpected verdicts: {verdicts}")
        raise typer.Exit(EXIT_INTERNAL)


def _as_json(records: dict[str, AuditRecord]) -> str:
    import json as json_module

    from bdaudit.records import to_json

    document = {name: json_module.loads(to_json(record)) for name, record in records.items()}
    return json_module.dumps(document, indent=2, allow_nan=False) + "\n"


def _show(records: dict[str, AuditRecord], quiet: bool) -> None:
    from rich.rule import Rule

    from bdaudit.report.terminal import print_record
    from bdaudit.report.wording import one_line

    console = stdout_console()
    for name, record in records.items():
        if quiet:
            say(f"{name}.safetensors {one_line(record)}")
            continue
        console.print(Rule(f"{name}.safetensors", style="dim"))
        print_record(record, console, brief=True)
    if quiet:
        return
    # Not through rich, which would break the command's lines.
    write_document(_NEXT + "\n")
