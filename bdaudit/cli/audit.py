"""`bdaudit audit`: the whole audit, a verdict and its exit code."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.budget import within_budget
from bdaudit.cli.bundles import Argument, Required, Without, taking_tables
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import exit_by, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    ReportSinks,
    results_go_to,
    show_plan,
    show_record,
    telling_what_is_kept,
)
from bdaudit.cli.project import (
    Config,
    TrustConfig,
    comes_from_project,
    table_of,
    use_project,
)
from bdaudit.cli.watching import showing_progress
from bdaudit.settings import (
    Attack,
    Clip,
    Compute,
    Inputs,
    Inversion,
    Limits,
    Models,
    Output,
    Query,
    Relearning,
    Surrogates,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="audit")(audit)


@reporting_errors
@taking_tables
def audit(
    ctx: typer.Context,
    inputs: Annotated[Inputs, Argument("defended"), Required("original", "data")],
    models: Models,
    clip: Clip,
    attack: Annotated[Attack, Without("optimizer")],
    limits: Limits,
    query: Query,
    surrogates: Surrogates,
    compute: Compute,
    output: Output,
    resume: options.Resume = False,
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Audit a defended model: is the original's backdoor gone, or only asleep?

    Without arguments, it runs what bdaudit.toml describes (`bdaudit init` writes one).

    Exit code 0: removed; 1: active or dormant; 3: inconclusive; 4: an input cannot be used.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    refuse_missing(inputs)

    from bdaudit.auditing import audit_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile

    if inputs.defended is not None and inputs.endpoint is not None:
        # One of the two named on the command line replaces the other of the project file.
        if comes_from_project(ctx, "defended"):
            inputs = replace(inputs, defended=None)
        elif comes_from_project(ctx, "endpoint"):
            inputs = replace(inputs, endpoint=None)
    attack = within_budget(ctx, attack.budget, "audit", attack)
    inputs = within_budget(ctx, attack.budget, "audit", inputs)
    said = ProjectFile(
        inputs=inputs,
        models=models,
        clip=clip,
        attack=attack,
        query=query,
        surrogates=surrogates,
        compute=compute,
        output=output,
        relearning=table_of(ctx, Relearning),
        inversion=table_of(ctx, Inversion),
        policy=limits.policy,
    )
    defended = assembly.defended_source(inputs)
    sink = JsonSink(output.json_, quiet=quiet)
    report_sinks = ReportSinks(output.report, json=sink)
    store = None if plan else options.open_store(query.state, json=output.json_, resume=resume)
    steps = audit_steps(
        assembly.sources(said, defended=defended, project=project),
        settings=assembly.audit_settings(said),
        store=store,
        cache_dir=assembly.model_cache(surrogates),
        command=["bdaudit", *sys.argv[1:]],
        planned=plan or not quiet,
    )
    results = results_go_to(sink, report_sinks)
    if plan:
        show_plan(steps, results)
        return
    with telling_what_is_kept(store):
        with showing_progress(quiet, results=results) as listener:
            record = finish(steps, listener)
        show_record(record, sink=sink, quiet=quiet, reports=report_sinks)
    if store is not None:
        store.finish()
    assert record.verdict is not None
    exit_by(record.verdict)
