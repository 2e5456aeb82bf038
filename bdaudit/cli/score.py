"""`bdaudit score`: the backdoor existence coefficient alone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, show_record, showing_progress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="score")(score)


@reporting_errors
def score(
    defended: options.DefendedFile,
    original: options.Original,
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
    top_share: Annotated[
        float,
        typer.Option(
            help="Share of channels kept in each layer.", min=0.0, max=1.0, rich_help_panel="BEC"
        ),
    ] = 0.10,
    estimator: Annotated[
        str, typer.Option(help="Of CKA: plain or debiased.", rich_help_panel="BEC")
    ] = "plain",
    samples: Annotated[
        int, typer.Option(help="Images at most.", min=4, rich_help_panel="BEC")
    ] = 500,
    bootstrap: Annotated[
        int, typer.Option(help="Bootstrap draws; 0 for none.", min=0, rich_help_panel="BEC")
    ] = 200,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Only layers whose name matches this pattern; may be given again.",
            rich_help_panel="BEC",
            show_default=False,
        ),
    ] = None,
    craft: options.Craft = None,
    held_out: options.HeldOut = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure how much of the original's backdoor circuit is left (BEC).

    It explains a verdict and never makes one: a high value does not say that the backdoor can be
    woken, a low one not that it cannot.
    """
    from bdaudit.auditing import ExistenceConfig, StandInConfig
    from bdaudit.auditing import score as run_score

    sink = JsonSink(json)
    with showing_progress(quiet) as listener:
        record = run_score(
            defended,
            original=original,
            data=data,
            trigger=trigger,
            references=reference or (),
            existence=ExistenceConfig(
                top_share=top_share,
                estimator=estimator,  # type: ignore[arg-type]
                n_samples=samples,
                n_bootstrap=bootstrap,
                batch_size=batch_size,
                include=tuple(layer or ()),
            ),
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
    show_record(record, sink=sink, quiet=quiet)
