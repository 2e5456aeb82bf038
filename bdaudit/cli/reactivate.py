"""`bdaudit reactivate`: one re-activation attack."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    check_writable,
    show_record,
    showing_progress,
    telling_what_is_kept,
)
from bdaudit.errors import ConfigError
from bdaudit.number_texts import read_numbers

__all__ = ["register"]


class Optimizer(StrEnum):
    """White-box optimisers."""

    DEFAULT = "default"
    RESEARCH = "research"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="reactivate")(reactivate)


@reporting_errors
def reactivate(
    data: options.Data,
    trigger: options.TriggerFile,
    eps: Annotated[
        str,
        typer.Option(
            help="Radius in pixel units, such as 0.02 or 5/255.", rich_help_panel="Attack"
        ),
    ],
    defended: options.Defended = None,
    endpoint: options.Endpoint = None,
    mode: Annotated[
        options.Mode | None,
        typer.Option(
            help="white: with gradients; query: asking alone; transfer: made on surrogates "
            "\\[default: white, or query where the model can only be asked].",
            show_default=False,
            rich_help_panel="Attack",
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            help="Attack this model too, to compare; surrogates are made from it.",
            rich_help_panel="Inputs",
        ),
    ] = None,
    reference: options.References = None,
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
    norm: Annotated[
        options.Norm, typer.Option(help="Norm of the perturbation.", rich_help_panel="Attack")
    ] = options.Norm.LINF,
    passes: Annotated[
        int,
        typer.Option(
            help="Gradient passes over the craft images.", min=1, rich_help_panel="Attack"
        ),
    ] = 24,
    restarts: Annotated[
        int, typer.Option(help="Independent starts.", min=1, rich_help_panel="Attack")
    ] = 1,
    objective: Annotated[
        options.Objective,
        typer.Option(help="What the attack optimises.", rich_help_panel="Attack"),
    ] = options.Objective.STANDARD,
    optimizer: Annotated[
        Optimizer,
        typer.Option(help="research: the paper's, for comparison.", rich_help_panel="Attack"),
    ] = Optimizer.DEFAULT,
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
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the perturbation to this .safetensors file.", rich_help_panel="Output"
        ),
    ] = None,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Search a tiny universal perturbation that wakes the trigger.

    The attack without the trigger and random noise are shown beside it: a high rate alone does
    not show a sleeping backdoor. For a verdict use `bdaudit audit`.
    """
    radii = read_numbers(eps, "--eps") or ()
    if len(radii) != 1:
        raise ConfigError(f"--eps: expected one radius, got {eps!r}; `bdaudit audit` takes several")
    sink = JsonSink(json)
    if save is not None:
        if save.suffix != ".safetensors":
            raise ConfigError(f"--save: expected a name ending in .safetensors, got {save}")
        check_writable(save)

    from bdaudit.auditing import (
        QueryConfig,
        TransferConfig,
        WhiteboxConfig,
        default_modes,
        save_delta,
    )
    from bdaudit.auditing import reactivate as run_reactivate

    source = options.defended_source(defended, endpoint)
    chosen = default_modes(source)[0] if mode is None else mode.value
    store = options.open_store(state, json=json, resume=resume, default=chosen == "query")
    config: WhiteboxConfig | QueryConfig | TransferConfig
    if chosen == "query":
        config = QueryConfig(
            eps=radii[0],
            norm=norm.value,
            max_queries=max_queries,
            feedback=feedback.value,
            schedule=schedule.value,
            autocast="bf16" if bf16 else None,
        )
    elif chosen == "transfer":
        config = TransferConfig(
            eps=radii[0],
            norm=norm.value,
            n_passes=passes,
            strategy=strategy.value,
            input_diversity=input_diversity,
        )
    else:
        config = WhiteboxConfig(
            eps=radii[0],
            norm=norm.value,
            n_passes=passes,
            restarts=restarts,
            objective=objective.value,
            optimizer=optimizer.value,
            autocast="bf16" if bf16 else None,
        )
    with telling_what_is_kept(store), showing_progress(quiet) as listener:
        found = run_reactivate(
            source,
            data=data,
            trigger=trigger,
            config=config,
            original=original,
            references=reference or (),
            surrogates=surrogate or (),
            warm=not cold,
            compute=options.compute_settings(device, seed, batch_size, bf16),
            split=options.split_settings(craft, held_out),
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
            cache_dir=options.model_cache(cache, no_cache),
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
    if save is not None:
        save_delta(save, found)
    show_record(found.record, sink=sink, quiet=quiet)
    if store is not None:
        store.finish()
