"""`bdaudit defend`: try defences, audit what each gives, keep the best."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bdaudit.cli import options
from bdaudit.cli.budget import within_budget
from bdaudit.cli.bundles import (
    Argument,
    InPanel,
    Only,
    Required,
    Reworded,
    Without,
    taking_tables,
)
from bdaudit.cli.early import refuse_missing
from bdaudit.cli.exits import EXIT_OF_RELEASE, reporting_errors
from bdaudit.cli.output import JsonSink, running_many, show_plan, tell_written, write_file
from bdaudit.cli.project import Config, TrustConfig, table_of, use_project
from bdaudit.cli.streams import say, stdout_console
from bdaudit.errors import ConfigError
from bdaudit.settings import (
    Attack,
    Compute,
    Defend,
    Engine,
    Inputs,
    Inversion,
    Limits,
    Models,
    Output,
    Relearning,
    Surrogates,
)

__all__ = ["register"]


def _list_defences(wanted: bool) -> None:
    if not wanted:
        return
    from bdaudit.defenses.catalogue import DEFENSES, flat_settings

    for name, defense in DEFENSES.items():
        say(f"{name}" if name == defense.title else f"{name} ({defense.title})")
        for setting, value in flat_settings(defense.config_type()).items():
            say(f"  --set {name}.{setting}={value}")
    raise typer.Exit


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="defend")(defend)


@reporting_errors
@taking_tables
def defend(
    ctx: typer.Context,
    inputs: Annotated[
        Inputs,
        Without("defended", "endpoint"),
        Argument("original"),
        Required("original", "data"),
        Reworded(original="The suspected model: a checkpoint."),
    ],
    defences: Defend,
    models: Models,
    attack: Annotated[Attack, Only("eps", "passes", "budget", "bec", "relearn"), InPanel("Audits")],
    limits: Annotated[Limits, InPanel("Audits")],
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    engine: Engine,
    compute: Compute,
    output: Annotated[Output, Only("json")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the defended models, their audits and the ranking. The same command "
            "again does only what is missing or has changed.",
            rich_help_panel="Output",
        ),
    ],
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Show every defence with its settings and their defaults, and exit.",
            rich_help_panel="Defences",
            callback=_list_defences,
            is_eager=True,
        ),
    ] = False,
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
    config: Config = None,
    trust_config: TrustConfig = False,
    debug: options.Debug = False,
) -> None:
    """Try defences on a suspected model, audit each result, rank them, keep the best.

    Exit code 0: the best is removed; 3: at best inconclusive; 1: none is removed.
    """
    project = use_project(ctx, trusted=trust_config, quiet=quiet)
    sink = JsonSink(output.json_, quiet=quiet)
    refuse_missing(inputs)

    from dataclasses import replace

    from bdaudit.auditing import DefendSettings, defend_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile
    from bdaudit.records import to_json
    from bdaudit.report.defenses import print_defenses
    from bdaudit.report.many_csv import defenses_csv
    from bdaudit.report.many_html import defenses_html

    attack = within_budget(ctx, attack.budget, "audit", attack)
    inputs = within_budget(ctx, attack.budget, "audit", inputs)
    said = ProjectFile(
        inputs=inputs,
        models=models,
        attack=attack,
        compute=compute,
        relearning=table_of(ctx, Relearning),
        inversion=table_of(ctx, Inversion),
        policy=limits.policy,
    )
    wanted = DefendSettings(
        methods=defences.methods,
        settings=_read_settings(defences.settings),
        defender_images=defences.defender_images,
        audit=replace(assembly.audit_settings(said), mode=("white",)),
    )
    steps = defend_steps(
        assembly.sources(said, defended=None, project=project),
        folder=out,
        engine=options.open_engine(engine),
        settings=wanted,
        cache_dir=assembly.model_cache(surrogates),
        command=["bdaudit", *sys.argv[1:]],
        planned=plan or not quiet,
    )
    results = f"results: {out}{os.sep}"
    if plan:
        show_plan(steps, results)
        return
    with running_many(out, quiet, results=results) as listener:
        record = finish(steps, listener)
    pages = {"defend.html": defenses_html(record), "defend.csv": defenses_csv(record)}
    for name, page in pages.items():
        write_file(out / name, page)
        if not quiet:
            tell_written(out / name)
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
