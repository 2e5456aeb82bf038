"""`bdaudit invert`: find the trigger and the target that nobody knows."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_OF_INVERSION, reporting_errors
from bdaudit.cli.output import JsonSink, check_writable, show_record, showing_progress
from bdaudit.cli.streams import say

__all__ = ["register"]


class Method(StrEnum):
    """Ways to look for a trigger."""

    AUTO = "auto"
    UNIVERSAL = "universal"
    WARP = "warp"
    NEURAL_CLEANSE = "neural-cleanse"
    FEATURE_DECOUPLING = "feature-decoupling"
    NEURON_NOISE = "neuron-noise"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="invert")(invert)


@reporting_errors
def invert(
    original: Annotated[
        str, typer.Argument(help="The suspected model: a checkpoint.", show_default=False)
    ],
    data: options.Data,
    reference: options.References = None,
    stand_ins: options.StandIns = None,
    stand_in_images: options.StandInImages = 64_000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Trigger file to write, with a picture beside it. Nothing is written when no "
            "backdoor was found.",
            rich_help_panel="Output",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[Method] | None,
        typer.Option(
            help="May be given again. auto: universal, warp and neural-cleanse.",
            rich_help_panel="Search",
            show_default="auto",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="The suspected class (index or name), or all.",
            rich_help_panel="Search",
            metavar="N|all",
        ),
    ] = "all",
    passes: Annotated[
        int,
        typer.Option(
            help="Passes over the craft images for a trigger made in full.",
            min=1,
            rich_help_panel="Search",
        ),
    ] = 12,
    classes: options.Classes = None,
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
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    craft: options.Craft = None,
    held_out: options.HeldOut = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    bf16: options.Bf16 = False,
    json: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the trigger and the target class in a suspected model.

    Exit code 0: no backdoor found; 1: found; 3: unsure; 4: an input cannot be used.
    """
    from bdaudit.auditing import InversionConfig, StandInConfig, save_recovered
    from bdaudit.auditing import invert as run_invert

    sink = JsonSink(json)
    if out is not None:
        check_writable(out)
    config = InversionConfig(methods=_methods(method), n_passes=passes)
    with showing_progress(quiet) as listener:
        recovered = run_invert(
            original,
            data=data,
            references=reference or (),
            target_label=None if target == "all" else target,
            config=config,
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
            stand_ins=stand_ins,
            stand_in=StandInConfig(n_images=stand_in_images),
            cache_dir=options.model_cache(cache, no_cache),
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
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


def _methods(chosen: list[Method] | None) -> tuple[Any, ...]:
    """Turn the option into the setting."""
    from bdaudit.auditing import InversionConfig

    if not chosen or Method.AUTO in chosen:
        return InversionConfig().methods
    return tuple(dict.fromkeys(method.value for method in chosen))
