"""`bdaudit fairness`: what a wanted trigger buys, and whether a student inherited it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import (
    Argument,
    Only,
    Required,
    Reworded,
    Without,
    taking_tables,
)
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, results_go_to
from bdaudit.cli.project import Config, TrustConfig, use_project
from bdaudit.cli.streams import say, stdout_console
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Clip, Compute, Inputs, Models

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="fairness")(fairness)


@reporting_errors
@taking_tables
def fairness(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("endpoint", "reference", "stand_ins", "stand_in_images", "placebo"),
        Argument("defended"),
        Required("defended", "original", "data", "trigger"),
        Reworded(
            defended="The student, or any model that may have the trigger: a checkpoint.",
            original="The teacher: the model that carries the trigger.",
            trigger="Trigger file (TOML).",
        ),
    ],
    models: Models,
    clip: Clip,
    compute: Annotated[Compute, Only("device", "batch_size", "seed")],
    group: Annotated[
        str,
        typer.Option(
            "--group", help="Column of the groups, of a table or a list.", show_default=False
        ),
    ],
    positive: Annotated[
        str,
        typer.Option(
            "--positive",
            help="The class that is the opportunity: an index or a name.",
            show_default=False,
        ),
    ],
    stamp: Annotated[
        list[str] | None,
        typer.Option(
            "--stamp",
            help="A group whose rows get the trigger; may be repeated \\[default: all].",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            help="Write the figures as JSON to this file, or to stdout with '-'.",
            metavar="FILE|-",
        ),
    ] = None,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Measure fairness between groups on teacher and student, with the trigger and without it.

    Figures beside a verdict, and no verdict: the exit code is 0 whatever comes out.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(json, quiet=quiet)

    refuse_missing(inputs)
    from bdaudit.auditing.fairness import fairness_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile
    from bdaudit.records import to_json
    from bdaudit.report.fairness_terminal import one_line, print_fairness

    said = ProjectFile(inputs=inputs, models=models, clip=clip)
    steps = fairness_steps(
        assembly.sources(said, defended=inputs.defended, project=project),
        group=group,
        positive=positive,
        stamp=stamp or (),
        compute=assembly.compute_settings(compute),
        command=["bdaudit", *sys.argv[1:]],
    )
    with showing_progress(quiet, results=results_go_to(sink)) as listener:
        made = finish(steps, listener)
    sink.write(to_json(made))
    if sink.to_stdout:
        return
    if quiet:
        say(one_line(made))
        return
    with stdout_console() as console:
        print_fairness(made, console)
