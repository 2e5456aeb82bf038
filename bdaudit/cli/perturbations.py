"""`bdaudit perturbations`: what the perturbations are like that wake the models of a family."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Default, InPanel, Only, Reworded, Single, taking_tables
from bdaudit.cli.exits import EXIT_INPUT, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    check_writable,
    running_many,
    tell_written,
    write_file,
)
from bdaudit.cli.streams import say, stdout_console, tell
from bdaudit.errors import ConfigError
from bdaudit.settings import Attack, Compute, Inputs, Models, Output, Query, Surrogates

if TYPE_CHECKING:
    from bdaudit.records.perturbations import TableName

__all__ = ["register"]

_WHAT = "What is measured"

_DEFAULT_EPS = 0.05
"""Of the paper's tables."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="perturbations")(perturbations)


@reporting_errors
@taking_tables
def perturbations(
    *,
    family: options.FamilyFolder,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for perturbations.json and perturbations.md; results of the same inputs "
            "and settings that it holds are kept.",
            show_default=False,
        ),
    ],
    tables: Annotated[
        str,
        typer.Option(
            help="Which tables: noise (added to what is shown), likeness (of activations, by CKA), "
            "transfer (from and to other models), queries (success by their number).",
            rich_help_panel=_WHAT,
        ),
    ] = "noise,likeness,transfer,queries",
    only: Annotated[list[str] | None, options.only_models(_WHAT)] = None,
    seeds: Annotated[
        int,
        typer.Option(
            help="Repeat all of it with so many seeds, counted up from --seed.",
            min=1,
            rich_help_panel=_WHAT,
        ),
    ] = 1,
    inputs: Annotated[
        Inputs,
        Only("data", "reference"),
        Reworded(
            data="Clean sample.",
            reference="An innocent model for the same task, in addition to those of the family.",
        ),
        Default(data="the family's own"),
        InPanel(_WHAT),
    ],
    attack: Annotated[
        Attack,
        Only("eps", "passes"),
        Single("eps"),
        InPanel(None),
        Reworded(eps="Radius of every perturbation (L-inf)."),
        Default(eps="0.05"),
    ],
    query: Annotated[Query, Only("max_queries", "feedback", "schedule", "cold")],
    surrogates: Annotated[
        Surrogates,
        Only("surrogate", "cache", "no_cache"),
        InPanel(None),
        Reworded(
            surrogate="One more model with the same trigger, of any architecture, to make "
            "perturbations on; may be repeated."
        ),
        Default(surrogate="the other models of the same original"),
    ],
    models: Annotated[Models, Only("arch")],
    compute: Annotated[Compute, Only("craft", "held_out", "device", "seed", "batch_size")],
    output: Annotated[Output, Only("json")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what the perturbations are like that wake the models of a family.

    Four tables of the re-activation paper: under random noise, inside the network, on other models,
    by number of queries; innocent models under the same attack stand beside. Killed and started
    again it goes on; what is finished is kept.

    Exit code 0: all is measured; 4: an input cannot be used, or some model could not be measured.
    """
    wanted = _tables(tables)
    sink = JsonSink(output.json_, quiet=quiet)
    if out.exists():
        check_writable(out / "perturbations.json")

    from bdaudit.auditing.bench import open_bench_source
    from bdaudit.auditing.perturbations import PerturbationSettings, perturbation_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile
    from bdaudit.records import to_json
    from bdaudit.report.perturbations import gist, perturbations_markdown
    from bdaudit.report.perturbations_terminal import print_perturbations

    if attack.eps is None:
        attack = replace(attack, eps=(_DEFAULT_EPS,))
    audit = assembly.audit_settings(ProjectFile(attack=attack, query=query, compute=compute))
    settings = PerturbationSettings(tables=wanted, only=tuple(only or ()), seeds=seeds, audit=audit)
    source = open_bench_source(
        family, data=inputs.data, references=[Path(path) for path in inputs.reference]
    )
    with running_many(out, quiet) as listener:
        made = finish(
            perturbation_steps(
                source,
                out=out,
                settings=settings,
                surrogates=[Path(path) for path in surrogates.surrogate],
                model_options=assembly.model_settings(models),
                cache_dir=assembly.model_cache(surrogates),
                command=["bdaudit", *sys.argv[1:]],
            ),
            listener,
        )
    text = to_json(made)
    pages = {"perturbations.json": text, "perturbations.md": perturbations_markdown(made)}
    for name, page in pages.items():
        write_file(out / name, page)
        if not quiet:
            tell_written(out / name)
    sink.write(text)
    if quiet:
        (tell if sink.to_stdout else say)(gist(made))
    elif not sink.to_stdout:
        print_perturbations(made, stdout_console())
    if any(case.reason is not None for case in made.cases):
        raise typer.Exit(EXIT_INPUT)


def _tables(text: str) -> tuple[TableName, ...]:
    from bdaudit.records.perturbations import TABLES

    named = [part.strip() for part in text.split(",")]
    if unknown := [name for name in named if name not in TABLES]:
        raise ConfigError(
            f"--tables: expected some of {', '.join(TABLES)}, got {', '.join(unknown) or text!r}"
        )
    return tuple(table for table in TABLES if table in named)
