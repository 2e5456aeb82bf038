"""`bdaudit audit`: the whole audit, a verdict and its exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import exit_by, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    ReportSinks,
    show_record,
    showing_progress,
    telling_what_is_kept,
)
from bdaudit.cli.project import Config, TrustConfig, comes_from_project, demand_trust, project_of
from bdaudit.cli.streams import tell

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="audit")(audit)


@reporting_errors
def audit(
    ctx: typer.Context,
    original: options.Original,
    data: options.Data,
    trigger: options.TriggerIfKnown = None,
    defended: options.Defended = None,
    endpoint: options.Endpoint = None,
    reference: options.References = None,
    stand_ins: options.StandIns = None,
    stand_in_images: options.StandInImages = 64_000,
    target: options.Target = None,
    classes: options.Classes = None,
    allow_trigger_code: options.AllowTriggerCode = False,
    arch: options.Arch = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    outputs: options.OutputsOption = None,
    classnames: options.ClassNames = None,
    templates: options.Templates = None,
    pretrained: options.Pretrained = None,
    clip_config: options.ClipConfig = None,
    mode: Annotated[
        list[options.Mode] | None,
        typer.Option(
            help="white: with gradients; query: asking alone; transfer: made on surrogates. May "
            "be repeated \\[default: white, or query where the model can only be asked].",
            show_default=False,
            rich_help_panel="Attack",
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii to try, in pixel units: 0.01,0.02 or 2/255 "
            "\\[default: 0.01,0.02,0.03,0.05 for linf].",
            rich_help_panel="Attack",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        options.Norm, typer.Option(help="Norm of the perturbation.", rich_help_panel="Attack")
    ] = options.Norm.LINF,
    passes: Annotated[
        int,
        typer.Option(
            help="Gradient passes over the craft images, for each attack.",
            min=1,
            rich_help_panel="Attack",
        ),
    ] = 24,
    restarts: Annotated[
        int, typer.Option(help="Independent starts.", min=1, rich_help_panel="Attack")
    ] = 1,
    objective: Annotated[
        options.Objective,
        typer.Option(help="What the attack optimises.", rich_help_panel="Attack"),
    ] = options.Objective.STANDARD,
    bec: Annotated[
        bool,
        typer.Option(
            "--bec/--no-bec",
            help="Measure the backdoor existence coefficient.",
            rich_help_panel="Attack",
        ),
    ] = True,
    relearn: Annotated[
        bool,
        typer.Option(
            "--relearn/--no-relearn",
            help="Also measure how fast the trigger is relearned; shown beside the verdict.",
            rich_help_panel="Attack",
        ),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="Limits of the verdict (TOML).", rich_help_panel="Inputs"),
    ] = None,
    max_queries: options.MaxQueries = 20_000,
    feedback: options.FeedbackOption = options.Feedback.SCORES,
    schedule: options.ScheduleOption = options.Schedule.DEFAULT,
    cold: options.Cold = False,
    surrogate: options.Surrogates = None,
    strategy: options.StrategyOption = options.Strategy.ENSEMBLE,
    input_diversity: options.InputDiversity = 0.0,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    qps: options.Qps = None,
    concurrency: options.Concurrency = 1,
    timeout: options.Timeout = 30.0,
    retries: options.Retries = 5,
    token_env: options.TokenEnv = None,
    ca_file: options.CaFile = None,
    binary: options.Binary = None,
    layout: options.LayoutOption = None,
    input_name: options.InputName = None,
    output_name: options.OutputName = None,
    grid: options.Grid = None,
    request_size: options.RequestSize = None,
    state: options.State = None,
    resume: options.Resume = False,
    craft: options.Craft = None,
    held_out: options.HeldOut = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    bf16: options.Bf16 = False,
    report: options.Reports = None,
    pictures: options.PicturesOption = True,
    json: options.Json = None,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Audit a defended model: is the original's backdoor gone, or only asleep?

    Without arguments, what bdaudit.toml says (`bdaudit init` writes one).

    Exit code 0: removed; 1: active or dormant; 3: inconclusive; 4: an input cannot be used.
    """
    from bdaudit.auditing import AuditSettings, RelearnConfig, StandInConfig, default_modes
    from bdaudit.auditing import audit as run_audit

    demand_trust(ctx, trust_config)
    project = project_of(ctx)
    if project is not None and not quiet:
        tell(f"bdaudit: defaults are those of {project.path}")
    if defended is not None and endpoint is not None:
        # One of the two named on the command line replaces the other of the project file.
        if comes_from_project(ctx, "defended"):
            defended = None
        elif comes_from_project(ctx, "endpoint"):
            endpoint = None
    source = options.defended_source(defended, endpoint)
    sink = JsonSink(json)
    report_sinks = ReportSinks(report, json=sink)
    modes = tuple(dict.fromkeys(m.value for m in mode)) if mode else default_modes(source)
    store = options.open_store(state, json=json, resume=resume, default="query" in modes)
    settings = AuditSettings(
        modes=modes,  # type: ignore[arg-type]
        max_queries=max_queries,
        feedback=feedback.value,
        schedule=schedule.value,
        warm=not cold,
        strategy=strategy.value,
        input_diversity=input_diversity,
        norm=norm.value,
        eps=options.read_ladder(eps),
        n_passes=passes,
        restarts=restarts,
        objective=objective.value,
        measure_bec=bec,
        relearn=RelearnConfig() if relearn else None,
        pictures=pictures,
        stand_ins=stand_ins,
        stand_in=StandInConfig(n_images=stand_in_images),
        compute=options.compute_settings(device, seed, batch_size, bf16),
        split=options.split_settings(craft, held_out),
    )
    with telling_what_is_kept(store), showing_progress(quiet) as listener:
        record = run_audit(
            source,
            original=original,
            data=data,
            trigger=trigger,
            references=reference or (),
            surrogates=surrogate or (),
            settings=settings,
            policy=policy,
            classes=classes,
            model_options=options.model_options(
                arch,
                num_classes,
                input_size,
                mean,
                std,
                outputs,
                classnames=classnames,
                templates=templates,
                pretrained=pretrained,
                clip_config=clip_config,
            ),
            target_label=target,
            allow_trigger_code=allow_trigger_code,
            black_box=options.black_box_options(
                qps=qps,
                concurrency=concurrency,
                timeout=timeout,
                retries=retries,
                token_env=token_env,
                ca_file=ca_file,
                binary=binary,
                layout=layout,
                input_name=input_name,
                output_name=output_name,
                grid=grid,
                request_size=request_size,
            ),
            store=store,
            project=None if project is None else project.path,
            cache_dir=options.model_cache(cache, no_cache),
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
    show_record(record, sink=sink, quiet=quiet, reports=report_sinks)
    if store is not None:
        store.finish()
    assert record.verdict is not None
    exit_by(record.verdict)
