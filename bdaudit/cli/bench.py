"""`bdaudit bench`: prove the verdict on models whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Default, InPanel, Only, Reworded, taking_tables
from bdaudit.cli.exits import EXIT_FAILED, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    check_writable,
    running_many,
    write_file,
)
from bdaudit.cli.streams import say, stdout_console, tell
from bdaudit.errors import ConfigError
from bdaudit.foundation.modes import MODES
from bdaudit.settings import (
    Attack,
    Compute,
    Engine,
    Inputs,
    Limits,
    Models,
    Output,
    Query,
    Surrogates,
)

if TYPE_CHECKING:
    from bdaudit.records.benchmark import Variant

__all__ = ["register"]

_WHAT = "What is audited"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="bench")(bench)


@reporting_errors
@taking_tables
def bench(
    *,
    family: options.FamilyFolder,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the records, benchmark.json and benchmark.html; results of the same "
            "inputs and settings that it holds are kept.",
            show_default=False,
        ),
    ],
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
    variants: Annotated[
        str,
        typer.Option(
            help=f"Variants to audit each model with, the main one first: {', '.join(MODES)}, "
            "recovered (the trigger is unknown), stand-ins (no innocent models are at hand).",
            rich_help_panel=_WHAT,
        ),
    ] = "white",
    every: Annotated[
        int,
        typer.Option(
            help="With the other variants, audit only every Nth model.",
            min=1,
            rich_help_panel=_WHAT,
        ),
    ] = 1,
    only: Annotated[list[str] | None, options.only_models(_WHAT)] = None,
    attack: Annotated[Attack, Only("eps", "passes"), InPanel(None)],
    query: Annotated[Query, Only("max_queries")],
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Choose the policy's limits on the models of half of the originals, report on "
            "the others, and write policy.toml.",
        ),
    ] = False,
    limits: Annotated[Limits, InPanel(None)],
    models: Annotated[Models, Only("arch")],
    engine: Engine,
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    compute: Compute,
    output: Annotated[Output, Only("json")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Audit every model of a family, and hold the verdicts against what the models are.

    Killed and started again it goes on; finished audits are kept.

    Exit code 0: no verdict is wrong; 1: some are; 4: an input cannot be used.
    """
    sink = JsonSink(output.json_, quiet=quiet)
    on = options.open_engine(engine)
    if out.exists():
        check_writable(out / "benchmark.json")

    from bdaudit.auditing.bench import BenchSettings, bench_steps, open_bench_source
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.project import ProjectFile
    from bdaudit.records import to_json
    from bdaudit.report.benchmark import gist
    from bdaudit.report.benchmark_html import render
    from bdaudit.report.benchmark_terminal import print_benchmark
    from bdaudit.report.many_csv import benchmark_csv
    from bdaudit.verdict import read_policy

    settings = BenchSettings(
        variants=_variants(variants),
        every=every,
        only=tuple(only or ()),
        audit=assembly.audit_settings(ProjectFile(attack=attack, query=query, compute=compute)),
        calibrate=calibrate,
    )
    policy = None if limits.policy is None else read_policy(Path(limits.policy))
    source = open_bench_source(
        family, data=inputs.data, references=[Path(path) for path in inputs.reference]
    )
    with running_many(out, quiet) as listener:
        made = finish(
            bench_steps(
                source,
                out=out,
                settings=settings,
                engine=on,
                policy=policy,
                policy_source=limits.policy or "defaults",
                model_options=assembly.model_settings(models),
                cache_dir=assembly.model_cache(surrogates),
                command=["bdaudit", *sys.argv[1:]],
            ),
            listener,
        )
    text = to_json(made)
    write_file(out / "benchmark.json", text)
    write_file(out / "benchmark.html", render(made))
    write_file(out / "benchmark.csv", benchmark_csv(made))
    if made.calibration is not None:
        write_file(out / "policy.toml", policy_text(made.calibration.policy))
    sink.write(text)
    if quiet:
        (tell if sink.to_stdout else say)(gist(made))
    elif not sink.to_stdout:
        print_benchmark(made, stdout_console())
        say(f"wrote benchmark.json, benchmark.html and benchmark.csv in {out}")
    if made.misses:
        raise typer.Exit(EXIT_FAILED)


def _variants(text: str) -> tuple[Variant, ...]:
    from bdaudit.records.benchmark import VARIANTS

    named = [part.strip() for part in text.split(",")]
    known = {str(variant): variant for variant in VARIANTS}
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(
            f"--variants: expected some of {', '.join(known)}, got {', '.join(unknown) or text!r}"
        )
    return tuple(known[name] for name in named)


def policy_text(policy: dict[str, object]) -> str:
    """Write the limits that calibration chooses as a policy file; others keep their defaults."""
    chosen = ("lift", "saturation", "confidence")
    return "".join(f"{name} = {policy[name]}\n" for name in chosen)
