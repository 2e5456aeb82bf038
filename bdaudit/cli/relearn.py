"""`bdaudit relearn`: how fast the trigger comes back under a handful of poisoned images."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, ReportSinks, show_record, showing_progress
from bdaudit.number_texts import read_numbers

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="relearn")(relearn)


@reporting_errors
def relearn(
    defended: options.DefendedFile,
    data: options.Data,
    trigger: options.TriggerFile,
    reference: options.References = None,
    stand_ins: options.StandIns = None,
    stand_in_images: options.StandInImages = 64_000,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
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
    shots: Annotated[
        int, typer.Option(help="Triggered images taught.", min=1, rich_help_panel="Relearning")
    ] = 5,
    steps: Annotated[
        str,
        typer.Option(
            help="Training steps after which the ASR is measured, rising.",
            rich_help_panel="Relearning",
        ),
    ] = "2,5,10,20",
    learning_rates: Annotated[
        str,
        typer.Option(
            help="Rates tried on the innocent models, rising; the defended model is taught at the "
            "largest that leaves them innocent.",
            rich_help_panel="Relearning",
        ),
    ] = "0.0001,0.0003,0.001,0.003",
    draws: Annotated[
        int,
        typer.Option(help="Repetitions with other shots.", min=1, rich_help_panel="Relearning"),
    ] = 5,
    freeze_batch_norm: Annotated[
        bool,
        typer.Option(
            "--freeze-batch-norm/--train-batch-norm",
            help="Keep the running statistics of batch norm.",
            rich_help_panel="Relearning",
        ),
    ] = True,
    craft: options.Craft = None,
    held_out: options.HeldOut = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    report: options.Reports = None,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Teach a model its trigger by a few images, innocent models alike, and compare.

    A sleeping backdoor comes back within a few steps. This is evidence beside a verdict, not a
    verdict: the exit code is 0 whatever comes out.
    """
    from bdaudit.auditing import RelearnConfig, StandInConfig
    from bdaudit.auditing import relearn as run_relearn

    sink = JsonSink(json)
    report_sinks = ReportSinks(report, json=sink)
    config = RelearnConfig(
        shots=shots,
        steps=options.read_counts(steps, "--steps"),
        learning_rates=read_numbers(learning_rates, "--learning-rates") or (),
        draws=draws,
        freeze_batch_norm=freeze_batch_norm,
    )
    with showing_progress(quiet) as listener:
        record = run_relearn(
            defended,
            data=data,
            trigger=trigger,
            references=reference or (),
            config=config,
            stand_ins=stand_ins,
            stand_in=StandInConfig(n_images=stand_in_images),
            cache_dir=options.model_cache(cache, no_cache),
            compute=options.compute_settings(device, seed, batch_size, bf16=False),
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
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
    show_record(record, sink=sink, quiet=quiet, reports=report_sinks)
