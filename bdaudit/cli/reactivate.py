"""`bdaudit reactivate`: one re-activation attack."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import JsonSink, check_writable, show_record, showing_progress
from bdaudit.errors import ConfigError

__all__ = ["register"]


class Mode(StrEnum):
    """Kinds of attack."""

    WHITE = "white"


class Optimizer(StrEnum):
    """White-box optimisers."""

    DEFAULT = "default"
    RESEARCH = "research"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="reactivate")(reactivate)


@reporting_errors
def reactivate(
    defended: options.Defended,
    data: options.Data,
    trigger: options.TriggerFile,
    eps: Annotated[
        str,
        typer.Option(
            help="Radius in pixel units, such as 0.02 or 5/255.", rich_help_panel="Attack"
        ),
    ],
    mode: Annotated[
        Mode, typer.Option(help="white: with gradients.", rich_help_panel="Attack")
    ] = Mode.WHITE,
    original: Annotated[
        Path | None,
        typer.Option(help="Attack this model too, to compare.", rich_help_panel="Inputs"),
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
    radii = options.read_numbers(eps, "--eps") or ()
    if len(radii) != 1:
        raise ConfigError(f"--eps: expected one radius, got {eps!r}; `bdaudit audit` takes several")
    sink = JsonSink(json)
    if save is not None:
        if save.suffix != ".safetensors":
            raise ConfigError(f"--save: expected a name ending in .safetensors, got {save}")
        check_writable(save)

    from bdaudit.auditing import WhiteboxConfig, save_delta
    from bdaudit.auditing import reactivate as run_reactivate

    with showing_progress(quiet) as listener:
        found = run_reactivate(
            defended,
            data=data,
            trigger=trigger,
            mode=mode.value,
            config=WhiteboxConfig(
                eps=radii[0],
                norm=norm.value,
                n_passes=passes,
                restarts=restarts,
                objective=objective.value,
                optimizer=optimizer.value,
                autocast="bf16" if bf16 else None,
            ),
            original=original,
            references=reference or (),
            compute=options.compute_settings(device, seed, batch_size, bf16),
            split=options.split_settings(craft, held_out),
            classes=classes,
            model_options=options.model_options(arch, num_classes, input_size, mean, std, outputs),
            target_label=target,
            allow_trigger_code=allow_trigger_code,
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
    if save is not None:
        save_delta(save, found)
    show_record(found.record, sink=sink, quiet=quiet)
