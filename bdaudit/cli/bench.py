"""`bdaudit bench`: prove the verdict on models whose truth is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import EXIT_FAILED, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    check_writable,
    running_many,
    write_file,
)
from bdaudit.cli.streams import say, stdout_console, tell
from bdaudit.errors import ConfigError

if TYPE_CHECKING:
    from bdaudit.benchmark_results import Variant

__all__ = ["register"]

_WHAT = "What is audited"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="bench")(bench)


@reporting_errors
def bench(
    family: Annotated[
        Path,
        typer.Argument(
            help="Folder with a family.json, or of BackdoorBench records.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the records, benchmark.json and benchmark.html; what it holds of the "
            "same inputs and settings is kept.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Clean sample \\[default: the family's own].",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    reference: options.References = None,
    variants: Annotated[
        str,
        typer.Option(
            help="Ways to audit each model, the first the main one: white, query, transfer, "
            "recovered (nobody knows the trigger), stand-ins (nobody has innocent models).",
            rich_help_panel=_WHAT,
        ),
    ] = "white",
    every: Annotated[
        int,
        typer.Option(
            help="Of the other ways, audit one model in so many.", min=1, rich_help_panel=_WHAT
        ),
    ] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only models of matching names ('badnets-*'); may be given again.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radii, 0.01,0.02 or 8/255 \\[default: 0.01, 0.02, 0.03, 0.05].",
            show_default=False,
        ),
    ] = None,
    passes: Annotated[
        int, typer.Option(help="Gradient passes over the craft images, each attack.", min=1)
    ] = 24,
    max_queries: options.MaxQueries = 20_000,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Choose the policy's limits on half of the originals' models, report on the "
            "other half, and write policy.toml.",
        ),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy file (TOML) with the limits.", show_default=False),
    ] = None,
    arch: options.Arch = None,
    engine: options.EngineName = options.Engine.LOCAL,
    workers: options.Workers = None,
    threads: options.Threads = None,
    gpus_per_task: options.GpusPerTask = None,
    ray_address: options.RayAddress = None,
    start_limit: options.StartLimit = None,
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
    """Audit every model of a family, and hold the verdicts against what the models are.

    Killed and started again it goes on; finished audits are kept.

    Exit code 0: no verdict is wrong; 1: some are; 4: an input cannot be used.
    """
    sink = JsonSink(json)
    on = options.open_engine(engine, workers, threads, gpus_per_task, ray_address, start_limit)
    cache_dir = options.model_cache(cache, no_cache)
    if out.exists():
        check_writable(out / "benchmark.json")

    from bdaudit.auditing import AuditSettings
    from bdaudit.auditing.bench import BenchSettings, bench_steps, open_bench_source
    from bdaudit.progress import finish
    from bdaudit.report.benchmark import gist
    from bdaudit.report.benchmark_html import render
    from bdaudit.report.benchmark_terminal import print_benchmark
    from bdaudit.results import to_json
    from bdaudit.verdict import read_policy

    settings = BenchSettings(
        variants=_variants(variants),
        every=every,
        only=tuple(only or ()),
        audit=AuditSettings(
            eps=options.read_ladder(eps),
            n_passes=passes,
            max_queries=max_queries,
            compute=options.compute_settings(device, seed, batch_size, bf16),
            split=options.split_settings(craft, held_out),
        ),
        calibrate=calibrate,
    )
    limits = None if policy is None else read_policy(policy)
    source = open_bench_source(
        family, data=data, references=[Path(path) for path in reference or ()]
    )
    with running_many(out, quiet) as listener:
        made = finish(
            bench_steps(
                source,
                out=out,
                settings=settings,
                engine=on,
                policy=limits,
                policy_source="defaults" if policy is None else str(policy),
                model_options=options.model_options(arch, None, None, None, None, None),
                cache_dir=cache_dir,
                command=["bdaudit", *sys.argv[1:]],
            ),
            listener,
        )
    text = to_json(made)
    write_file(out / "benchmark.json", text)
    write_file(out / "benchmark.html", render(made))
    if made.calibration is not None:
        write_file(out / "policy.toml", _policy_text(made.calibration.policy))
    sink.write(text)
    if quiet:
        (tell if sink.to_stdout else say)(gist(made))
    elif not sink.to_stdout:
        print_benchmark(made, stdout_console())
        say(f"wrote {out / 'benchmark.json'} and {out / 'benchmark.html'}")
    if made.misses:
        raise typer.Exit(EXIT_FAILED)


def _variants(text: str) -> tuple[Variant, ...]:
    from bdaudit.benchmark_results import Variant

    named = [part.strip() for part in text.split(",")]
    known = {variant: variant for variant in get_args(Variant)}
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(
            f"--variants: expected some of {', '.join(known)}, got {', '.join(unknown) or text!r}"
        )
    return tuple(known[name] for name in named)


def _policy_text(policy: dict[str, object]) -> str:
    """Write the limits that calibration chooses as a policy file; others keep their defaults."""
    chosen = ("lift", "saturation", "confidence")
    return "".join(f"{name} = {policy[name]}\n" for name in chosen)
