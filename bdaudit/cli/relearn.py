"""`bdaudit relearn`: how fast the trigger comes back under a handful of poisoned images."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bdaudit.cli import options
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
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, ReportSinks, results_go_to, show_plan, show_record
from bdaudit.cli.project import Config, TrustConfig, use_project
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Clip, Compute, Inputs, Models, Output, Relearning, Surrogates

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="relearn")(relearn)


@reporting_errors
@taking_tables
def relearn(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("endpoint", "original"),
        Argument("defended"),
        Required("defended", "data", "trigger"),
        Reworded(defended="The release candidate: a checkpoint.", trigger="Trigger file (TOML)."),
    ],
    models: Models,
    clip: Clip,
    relearning: Relearning,
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    compute: Annotated[Compute, Without("bf16")],
    output: Annotated[Output, Without("pictures"), NotFromFile("json", "report")],
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Train a model and innocent models on a few triggered images, and compare.

    A dormant backdoor returns within a few steps. This is evidence beside a verdict, not a
    verdict: the exit code is 0 whatever comes out.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(output.json_, quiet=quiet)
    report_sinks = ReportSinks(output.report, of="relearning", json=sink)

    refuse_missing(inputs)
    from bdaudit.auditing import relearn_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile

    said = ProjectFile(inputs=inputs, models=models, clip=clip)
    steps = relearn_steps(
        assembly.sources(said, defended=inputs.defended, project=project),
        config=assembly.relearn_config(relearning),
        stand_ins=inputs.stand_ins,
        stand_in=assembly.stand_in_config(inputs),
        cache_dir=assembly.model_cache(surrogates),
        compute=assembly.compute_settings(compute),
        split=assembly.split_settings(compute),
        command=["bdaudit", *sys.argv[1:]],
        planned=plan or not quiet,
    )
    results = results_go_to(sink, report_sinks)
    if plan:
        show_plan(steps, results)
        return
    with showing_progress(quiet, results=results) as listener:
        record = finish(steps, listener)
    show_record(record, sink=sink, quiet=quiet, reports=report_sinks)
