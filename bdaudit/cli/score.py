"""`bdaudit score`: the backdoor existence coefficient alone."""

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
from bdaudit.cli.output import JsonSink, results_go_to, show_plan, show_record
from bdaudit.cli.project import Config, TrustConfig, use_project
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import Clip, Compute, Existence, Inputs, Models, Output, Surrogates

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="score")(score)


@reporting_errors
@taking_tables
def score(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("endpoint"),
        Argument("defended"),
        Required("defended", "original", "data", "trigger"),
        Reworded(defended="The release candidate: a checkpoint.", trigger="Trigger file (TOML)."),
    ],
    models: Models,
    clip: Clip,
    existence: Existence,
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    compute: Annotated[Compute, Without("bf16")],
    output: Annotated[Output, Only("json"), NotFromFile("json")],
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Measure how much of the original's backdoor circuit is left (BEC).

    It explains a verdict and never makes one: a high value does not say that the backdoor can be
    woken, a low one not that it cannot.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(output.json_, quiet=quiet)

    refuse_missing(inputs)
    from bdaudit.auditing import score_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile

    said = ProjectFile(inputs=inputs, models=models, clip=clip)
    steps = score_steps(
        assembly.sources(said, defended=inputs.defended, project=project),
        existence=assembly.existence_config(existence, compute),
        stand_ins=inputs.stand_ins,
        stand_in=assembly.stand_in_config(inputs),
        cache_dir=assembly.model_cache(surrogates),
        compute=assembly.compute_settings(compute),
        split=assembly.split_settings(compute),
        command=["bdaudit", *sys.argv[1:]],
        planned=plan or not quiet,
    )
    results = results_go_to(sink)
    if plan:
        show_plan(steps, results)
        return
    with showing_progress(quiet, results=results) as listener:
        record = finish(steps, listener)
    show_record(record, sink=sink, quiet=quiet)
