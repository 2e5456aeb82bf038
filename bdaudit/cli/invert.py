"""`bdaudit invert`: find the trigger and the target that nobody knows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.budget import within_budget
from bdaudit.cli.bundles import (
    Argument,
    NotFromFile,
    Only,
    Required,
    Reworded,
    Without,
    taking_tables,
)
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import EXIT_OF_INVERSION, reporting_errors
from bdaudit.cli.output import JsonSink, check_writable, results_go_to, show_plan, show_record
from bdaudit.cli.project import Config, TrustConfig, use_project
from bdaudit.cli.streams import say
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Clip, Compute, Inputs, Inversion, Models, Output, Surrogates

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="invert")(invert)


@reporting_errors
@taking_tables
def invert(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("defended", "endpoint", "trigger", "target", "allow_trigger_code"),
        Argument("original"),
        Required("original", "data"),
        Reworded(original="The suspected model: a checkpoint."),
    ],
    models: Models,
    clip: Clip,
    inversion: Inversion,
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    compute: Compute,
    output: Annotated[Output, Only("json"), NotFromFile("json")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Trigger file to write, with a picture beside it. Nothing is written when no "
            "backdoor was found.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Find the trigger and the target class in a suspected model.

    Exit code 0: no backdoor found; 1: found; 3: unsure; 4: an input cannot be used.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(output.json_, quiet=quiet)
    if out is not None:
        check_writable(out)

    refuse_missing(inputs)
    from bdaudit.auditing import invert_steps, save_recovered
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile

    inversion = within_budget(ctx, inversion.budget, "search", inversion)
    target = None if inversion.target == "all" else inversion.target
    said = ProjectFile(inputs=replace(inputs, target=target), models=models, clip=clip)
    steps = invert_steps(
        assembly.sources(said, defended=None, project=project),
        config=assembly.inversion_config(inversion),
        stand_ins=inputs.stand_ins,
        stand_in=assembly.stand_in_config(inputs),
        cache_dir=assembly.model_cache(surrogates),
        compute=assembly.compute_settings(compute),
        split=assembly.split_settings(compute),
        command=["bdaudit", *sys.argv[1:]],
        planned=plan or not quiet,
    )
    results = results_go_to(sink) if out is None else f"results: {out}"
    if plan:
        show_plan(steps, results)
        return
    with showing_progress(quiet, results=results) as listener:
        recovered = finish(steps, listener)
    outcome = recovered.record.inversion.outcome
    if out is not None and outcome != "none":
        save_recovered(out, recovered)
    show_record(recovered.record, sink=sink, quiet=quiet)
    if out is not None and not quiet and not sink.to_stdout:
        picture = out.with_suffix(".png")
        say(
            "no trigger file was written: no backdoor found"
            if outcome == "none"
            else f"wrote {out} (recovered, not known) and {picture}"
        )
    raise typer.Exit(EXIT_OF_INVERSION[outcome])
