"""`bdaudit sweep`: many audits from one manifest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import InPanel, Only, taking_tables, telling_old_names
from bdaudit.cli.exits import exit_of_sweep, reporting_errors
from bdaudit.cli.output import (
    JsonSink,
    running_many,
    tell_written,
    write_file,
)
from bdaudit.cli.streams import say, stderr_is_terminal, stdout_console, tell, tell_traceback
from bdaudit.errors import ConfigError, ProjectError
from bdaudit.settings import Engine, Inputs, Output, Surrogates

if TYPE_CHECKING:
    from bdaudit.auditing import AuditRequest
    from bdaudit.records.sweeps import ReportedFigures, SweptAudit

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="sweep")(sweep)


@reporting_errors
@taking_tables
def sweep(
    *,
    manifest: Annotated[
        Path,
        typer.Argument(
            help="TOML file that lists the audits, or a BackdoorBench record folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the records and sweep.json; results of the same inputs and settings "
            "that it holds are kept.",
            show_default=False,
        ),
    ],
    inputs: Annotated[
        Inputs,
        Only(
            "data", "classes", "label_column", "image_column", "trigger", "reference", "stand_ins"
        ),
        InPanel("Inputs of a BackdoorBench record folder"),
    ],
    engine: Engine,
    surrogates: Annotated[Surrogates, Only("cache", "no_cache")],
    trust_manifest: Annotated[
        bool,
        typer.Option(
            "--trust-manifest",
            help="Let the manifest run Python files and name a token's variable. Only for a file "
            "you have read.",
        ),
    ] = False,
    output: Annotated[Output, Only("json")],
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run many audits in parallel; attacks on a shared original are run once.

    Run the same command again after an interruption: finished audits are kept.

    Exit code of the worst: 1 active or dormant, 70 one failed, 4 one had unusable inputs,
    3 inconclusive, 0 all removed.
    """
    sink = JsonSink(output.json_, quiet=quiet)
    on = options.open_engine(engine)

    from bdaudit.auditing import sweep_steps
    from bdaudit.cases import assembly
    from bdaudit.foundation.progress import finish
    from bdaudit.records import to_json
    from bdaudit.report.many_csv import sweep_csv
    from bdaudit.report.many_html import sweep_html
    from bdaudit.report.sweep_terminal import print_sweep

    with telling_old_names():
        asked = _read(manifest, inputs, trusted=trust_manifest)
    told = _say if not quiet and not stderr_is_terminal() else None
    with running_many(out, quiet) as listener:
        made = finish(
            sweep_steps(
                asked.requests,
                folder=out,
                engine=on,
                cache_dir=assembly.model_cache(surrogates),
                command=["bdaudit", *sys.argv[1:]],
                told=told,
                reported=asked.reported,
                notes=asked.notes,
            ),
            listener,
        )
    text = to_json(made)
    pages = {"sweep.json": text, "sweep.html": sweep_html(made), "sweep.csv": sweep_csv(made)}
    for name, page in pages.items():
        write_file(out / name, page)
        if not quiet:
            tell_written(out / name)
    sink.write(text)
    if debug:
        for audit in made.audits:
            if audit.traceback:
                tell(f"{audit.key}:")
                tell_traceback(audit.traceback)
    if quiet:
        (tell if sink.to_stdout else say)(_one_line(made.audits))
    elif not sink.to_stdout:
        print_sweep(made, stdout_console())
    raise typer.Exit(exit_of_sweep(made))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be audited, and what a record folder says of it itself."""

    requests: list[AuditRequest]
    reported: Mapping[str, ReportedFigures] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _read(manifest: Path, inputs: Inputs, *, trusted: bool) -> _Asked:
    from bdaudit.cases.assembly import request_from_project
    from bdaudit.foundation.opening import is_folder
    from bdaudit.project import read_manifest

    if is_folder(manifest):
        return _read_record(manifest, inputs)
    if inputs != Inputs():
        raise ConfigError(
            "--data, --classes, --label-column, --image-column, --trigger, --reference and "
            "--stand-ins are for a BackdoorBench record folder; a manifest has them in "
            "[defaults.inputs]"
        )
    requests = []
    for key, project in read_manifest(manifest):
        reason = next(iter(project.needs_trust().values()), None)
        if reason is not None and not trusted:
            raise ProjectError(
                f"{manifest}: {key}: {reason}; read it, and if you trust it pass --trust-manifest"
            )
        requests.append(request_from_project(key, project))
    return _Asked(requests=requests)


def _read_record(folder: Path, inputs: Inputs) -> _Asked:
    from bdaudit.cases.assembly import request_from_project
    from bdaudit.foundation.sources import is_url
    from bdaudit.project.records import read_record_folder

    def seen_from_here(path: str | None) -> str | None:
        return path if path is None or is_url(path) else str(Path(path).resolve())

    given = {
        "data": seen_from_here(inputs.data),
        "classes": seen_from_here(inputs.classes),
        "label_column": inputs.label_column,
        "image_column": inputs.image_column,
        "trigger": seen_from_here(inputs.trigger),
        "reference": [seen_from_here(path) for path in inputs.reference] or None,
        "stand_ins": inputs.stand_ins,
    }
    if inputs.trigger is None:
        _import_its_trigger(folder)
    found = read_record_folder(folder, given)
    requests = [request_from_project(key, project) for key, project in found.projects.items()]
    # There is no project file to name.
    requests = [replace(r, sources=replace(r.sources, project=None)) for r in requests]
    return _Asked(requests=requests, reported=found.reported, notes=found.notes)


def _import_its_trigger(folder: Path) -> None:
    """Write the trigger of a record that has its poisoned images and settings, and none yet."""
    from bdaudit.project.records import is_trigger_missing

    if is_trigger_missing(folder):
        from bdaudit.triggers import import_trigger

        made = import_trigger(folder)
        tell(f"wrote {made}: its poisoned test images, the target as the attack's settings say")


def _say(audit: SweptAudit) -> None:
    """Print one line when an audit has finished, where there is no progress bar."""
    what = audit.outcome or "failed"
    tell(f"bdaudit: {audit.key}: {what} ({audit.status}): {audit.why}")


def _one_line(audits: Sequence[SweptAudit]) -> str:
    names = [audit.outcome or "failed" for audit in audits]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))
