"""`bdaudit reactivate`: one re-activation attack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import (
    Argument,
    NotFromFile,
    Only,
    Required,
    Reworded,
    Single,
    Without,
    taking_tables,
)
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    check_writable,
    show_record,
    tell_written,
    telling_what_is_kept,
)
from bdaudit.cli.project import Config, TrustConfig, use_project
from bdaudit.cli.watching import showing_progress
from bdaudit.errors import ConfigError
from bdaudit.settings import Attack, Clip, Compute, Inputs, Models, Output, Query, Surrogates

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="reactivate")(reactivate)


@reporting_errors
@taking_tables
def reactivate(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("stand_ins", "stand_in_images"),
        Argument("defended"),
        Required("data", "trigger"),
        Reworded(
            trigger="Trigger file (TOML).",
            original="Also attack this model, for comparison; surrogates are made from it.",
        ),
    ],
    models: Models,
    clip: Clip,
    attack: Annotated[
        Attack,
        Without("bec", "relearn", "budget"),
        Single("eps", "mode"),
        Required("eps"),
        Reworded(eps="Radius in pixel units, such as 0.02 or 5/255."),
    ],
    query: Annotated[Query, NotFromFile("state")],
    surrogates: Surrogates,
    compute: Compute,
    output: Annotated[Output, Only("json"), NotFromFile("json")],
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the perturbation to this .safetensors file.", rich_help_panel="Output"
        ),
    ] = None,
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Search for a tiny universal perturbation that wakes the backdoor.

    The attack without the trigger and random noise are shown beside it: a high rate alone does
    not show a sleeping backdoor. For a verdict use `bdaudit audit`.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(output.json_, quiet=quiet)
    if save is not None:
        if save.suffix != ".safetensors":
            raise ConfigError(f"--save: expected a name ending in .safetensors, got {save}")
        check_writable(save)

    refuse_missing(inputs)
    from bdaudit.auditing import reactivate_steps, save_delta
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.measuring.attacking import KINDS
    from bdaudit.measuring.store import MemoryStore
    from bdaudit.project import ProjectFile

    said = ProjectFile(
        inputs=inputs,
        models=models,
        clip=clip,
        attack=attack,
        query=query,
        surrogates=surrogates,
        compute=compute,
    )
    defended = assembly.defended_source(inputs)
    (mode,) = assembly.modes_of(said, defended)[:1]
    wanted = KINDS[mode].configure(*assembly.single_attack(said, mode))
    store = options.open_store(query.state, json=output.json_, resume=resume)
    with telling_what_is_kept(store), showing_progress(quiet) as listener:
        steps = reactivate_steps(
            assembly.sources(said, defended=defended, project=project),
            config=wanted,
            cold=query.cold,
            compute=assembly.compute_settings(compute),
            split=assembly.split_settings(compute),
            store=MemoryStore() if store is None else store,
            cache_dir=assembly.model_cache(surrogates),
            command=["bdaudit", *sys.argv[1:]],
        )
        found = finish(steps, listener)
    if save is not None:
        save_delta(save, found)
        if not quiet:
            tell_written(save)
    show_record(found.record, sink=sink, quiet=quiet)
    if store is not None:
        store.finish()
