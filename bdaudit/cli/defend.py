"""`bdaudit defend`: try defences, audit what each gives, keep the best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_OF_RELEASE, reporting_errors
from bdaudit.cli.output import JsonSink, running_many
from bdaudit.cli.project import Config, TrustConfig, demand_trust, project_of
from bdaudit.cli.streams import say, stdout_console, tell
from bdaudit.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="defend")(defend)


@reporting_errors
def defend(
    ctx: typer.Context,
    original: Annotated[
        str, typer.Argument(help="The suspected model: a checkpoint.", show_default=False)
    ],
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the defended models, their audits and the ranking. The same command "
            "again does only what is missing or has changed.",
            rich_help_panel="Output",
        ),
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Defences to try, separated by commas \\[default: all of them].",
            show_default=False,
            rich_help_panel="Defences",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="METHOD.SETTING=VALUE",
            help="A setting of one defence, such as anp.threshold=0.3; may be repeated.",
            show_default=False,
            rich_help_panel="Defences",
        ),
    ] = None,
    defender_images: Annotated[
        int | None,
        typer.Option(
            help="Clean images the defences get; the audits get the others "
            "\\[default: half, at most 2000].",
            min=2,
            show_default=False,
            rich_help_panel="Defences",
        ),
    ] = None,
    trigger: options.TriggerIfKnown = None,
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
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii that audits try, in pixel units: 0.01,0.02 or 2/255 "
            "\\[default: 0.01,0.02,0.03,0.05].",
            rich_help_panel="Audits",
            show_default=False,
        ),
    ] = None,
    passes: Annotated[
        int,
        typer.Option(
            help="Gradient passes over the craft images, for each attack.",
            min=1,
            rich_help_panel="Audits",
        ),
    ] = 24,
    bec: Annotated[
        bool,
        typer.Option(
            "--bec/--no-bec",
            help="Measure the backdoor existence coefficient.",
            rich_help_panel="Audits",
        ),
    ] = True,
    relearn: Annotated[
        bool,
        typer.Option(
            "--relearn/--no-relearn",
            help="Also measure how fast the trigger is relearned.",
            rich_help_panel="Audits",
        ),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="Limits of the verdicts (TOML).", rich_help_panel="Audits"),
    ] = None,
    craft: options.Craft = None,
    held_out: options.HeldOut = None,
    engine: options.EngineName = options.Engine.LOCAL,
    workers: options.Workers = None,
    threads: options.Threads = None,
    gpus_per_task: options.GpusPerTask = None,
    ray_address: options.RayAddress = None,
    start_limit: options.StartLimit = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    bf16: options.Bf16 = False,
    json: options.Json = None,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Try defences on a suspected model, audit each result, rank them, keep the best.

    Exit code 0: the best is removed; 3: at best inconclusive; 1: none is removed.
    """
    from bdaudit.auditing import (
        AuditSettings,
        DefendSettings,
        RelearnConfig,
        Sources,
        StandInConfig,
        defend_steps,
    )
    from bdaudit.progress import finish
    from bdaudit.report.defenses import print_defenses
    from bdaudit.results import to_json

    demand_trust(ctx, trust_config)
    project = project_of(ctx)
    if project is not None and not quiet:
        tell(f"bdaudit: defaults are those of {project.path}")
    sink = JsonSink(json)
    wanted = DefendSettings(
        methods=None if methods is None else tuple(m.strip() for m in methods.split(",")),
        method_settings=_read_settings(settings or ()),
        n_defender=defender_images,
        audit=AuditSettings(
            modes=("white",),
            eps=options.read_ladder(eps),
            n_passes=passes,
            measure_bec=bec,
            relearn=RelearnConfig() if relearn else None,
            stand_ins=stand_ins,
            stand_in=StandInConfig(n_images=stand_in_images),
            compute=options.compute_settings(device, seed, batch_size, bf16),
            split=options.split_settings(craft, held_out),
        ),
    )
    sources = Sources(
        defended=None,
        original=original,
        references=reference or (),
        data=data,
        trigger=trigger,
        policy=policy,
        classes=classes,
        model_options=options.model_options(arch, num_classes, input_size, mean, std, outputs),
        target_label=target,
        allow_trigger_code=allow_trigger_code,
        project=None if project is None else project.path,
    )
    steps = defend_steps(
        sources,
        folder=out,
        engine=options.open_engine(
            engine, workers, threads, gpus_per_task, ray_address, start_limit
        ),
        settings=wanted,
        cache_dir=options.model_cache(cache, no_cache),
        command=["bdaudit", *sys.argv[1:]],
    )
    with running_many(out, quiet) as listener:
        record = finish(steps, listener)
    sink.write(to_json(record))
    if not sink.to_stdout:
        if quiet:
            say(f"{record.outcome}: {record.why}")
        else:
            print_defenses(record, out, stdout_console())
    raise typer.Exit(EXIT_OF_RELEASE[record.outcome])


def _read_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read "anp.threshold=0.3" into settings by method; a value is TOML, or else a text.

    Raises:
        ConfigError: One is of another form, or given twice.
    """
    import tomllib

    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        method, dot, setting = name.strip().partition(".")
        if not (equals and dot and setting):
            raise ConfigError(f"--set: expected METHOD.SETTING=VALUE, got {text!r}")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        if setting in found.setdefault(method, {}):
            raise ConfigError(f"--set: {name.strip()} is given twice")
        found[method][setting] = parsed
    return found
