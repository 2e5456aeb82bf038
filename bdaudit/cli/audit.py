"""`bdaudit audit`: the whole audit, a verdict and its exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_OF_OUTCOME, reporting_errors
from bdaudit.cli.output import JsonSink, show_record, showing_progress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="audit")(audit)


@reporting_errors
def audit(
    defended: options.Defended,
    original: options.Original,
    data: options.Data,
    trigger: options.TriggerFile,
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
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii to try, in pixel units: 0.01,0.02 or 2/255 "
            "[default: 0.01,0.02,0.03,0.05 for linf].",
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
    policy: Annotated[
        Path | None,
        typer.Option(help="Limits of the verdict (TOML).", rich_help_panel="Inputs"),
    ] = None,
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
    """Audit a defended model: is the original's backdoor gone, or only asleep?

    Exit code 0: removed; 1: active or dormant; 3: inconclusive; 4: an input cannot be used.
    """
    from bdaudit.auditing import AuditSettings
    from bdaudit.auditing import audit as run_audit

    sink = JsonSink(json)
    settings = AuditSettings(
        norm=norm.value,
        eps=options.read_ladder(eps),
        n_passes=passes,
        restarts=restarts,
        objective=objective.value,
        measure_bec=bec,
        compute=options.compute_settings(device, seed, batch_size, bf16),
        split=options.split_settings(craft, held_out),
    )
    with showing_progress(quiet) as listener:
        record = run_audit(
            defended,
            original=original,
            data=data,
            trigger=trigger,
            references=reference or (),
            settings=settings,
            policy=policy,
            classes=classes,
            model_options=options.model_options(arch, num_classes, input_size, mean, std, outputs),
            target_label=target,
            allow_trigger_code=allow_trigger_code,
            command=["bdaudit", *sys.argv[1:]],
            listener=listener,
        )
    show_record(record, sink=sink, quiet=quiet)
    assert record.verdict is not None
    raise typer.Exit(EXIT_OF_OUTCOME[record.verdict.outcome])
