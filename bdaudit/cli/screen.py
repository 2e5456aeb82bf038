"""`bdaudit screen`: is one class of a model that comes alone out of proportion?"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Argument, Only, Required, Reworded, taking_tables
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import EXIT_OF_SCREENING, reporting_errors
from bdaudit.cli.output import JsonSink, ReportSinks, results_go_to, show_record
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Clip, Compute, Inputs, Models, Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="screen")(screen)


@reporting_errors
@taking_tables
def screen(
    inputs: Annotated[
        Inputs,
        Only("original", "classes"),
        Argument("original"),
        Required("original"),
        Reworded(original="The model: a checkpoint."),
    ],
    models: Models,
    clip: Clip,
    compute: Annotated[Compute, Only("device", "seed", "batch_size")],
    output: Annotated[Output, Only("json", "report")],
    image_shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W",
            help="Shape of the images, where the checkpoint does not say.",
            rich_help_panel="Model details that the checkpoints do not store",
            show_default=False,
        ),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Look for a backdoor in a model that comes without images and without an original (MM-BD).

    A first look, which proves nothing: it misses backdoors and suspects innocent models. Exit code
    0: nothing found; 1: suspicious; 3: it cannot tell; 4: an input cannot be used.
    """
    sink = JsonSink(output.json_, quiet=quiet)
    report_sinks = ReportSinks(output.report, of="screening", json=sink)
    shape = options.read_shape(image_shape)

    refuse_missing(inputs)
    from bdaudit.auditing import Sources, screen_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.inversion import MaximumMarginConfig

    settings = assembly.model_settings(models, clip)
    sources = Sources.of(
        defended=None,
        original=inputs.original,
        data=None,
        trigger=None,
        classes=assembly.path_of(inputs.classes),
        model_options=replace(settings, image_shape=shape),
    )
    steps = screen_steps(
        sources,
        config=MaximumMarginConfig(),
        compute=assembly.compute_settings(compute),
        command=["bdaudit", *sys.argv[1:]],
    )
    with showing_progress(quiet, results=results_go_to(sink, report_sinks)) as listener:
        record = finish(steps, listener)
    show_record(record, sink=sink, quiet=quiet, reports=report_sinks)
    raise typer.Exit(EXIT_OF_SCREENING[record.screening.outcome])
