"""`bdaudit zoo`: families of models whose truth is known."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Only, taking_tables
from bdaudit.cli.exits import EXIT_INTERNAL, reporting_errors
from bdaudit.cli.output import keeping_parts
from bdaudit.cli.streams import (
    say,
    stderr_console,
    stderr_is_terminal,
    stdout_console,
    tell,
    write_document,
)
from bdaudit.plain_text import on_one_line
from bdaudit.settings import Compute, Engine

if TYPE_CHECKING:
    from bdaudit.engines import Event
    from bdaudit.zoo.building import Build, Built

__all__ = ["app"]

app = typer.Typer(
    name="zoo", help="Build families of models whose truth is known.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Build families of models whose truth is known."""


@app.command()
@reporting_errors
@taking_tables
def build(
    *,
    manifest: Annotated[
        Path, typer.Argument(help="Family file (TOML).", show_default=False, metavar="FAMILY.toml")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the family; models that exist already are kept.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Data set, in place of the family file's data.path.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only members whose names match, and what they are made from: 'badnets-*'; may "
            "be repeated.",
            metavar="PATTERN",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List what would be built and how long it would take, without building it.",
        ),
    ] = False,
    engine: Engine,
    compute: Annotated[Compute, Only("device")],
    json: Annotated[
        bool, typer.Option("--json", help="Write family.json to stdout instead of a table.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train models with backdoors, defend them, and find out what became of each backdoor.

    Killed anywhere and started again it goes on, and makes nothing twice. When the family file
    was changed, only what the change touches is made again.

    Exit code 0: all members are there; 70: some could not be made; 4: an input cannot be used.
    """
    from bdaudit.measuring.environment import resolve_device
    from bdaudit.zoo.building import build_family, prepare_build
    from bdaudit.zoo.manifest import read_manifest

    family_file = read_manifest(manifest)
    if data is not None:
        family_file = family_file.with_data(data)
    chosen = options.open_engine(engine)
    build = prepare_build(
        family_file, out, only=only or (), device=str(resolve_device(compute.device))
    )
    if not (quiet or json):
        _announce(build)
    if dry_run:
        _show_costs(build, engine.workers or 1)
        return
    with _showing(build, quiet or json) as display, keeping_parts(out):
        steps = build_family(build, chosen)
        try:
            while True:
                display.hear(next(steps))
        except StopIteration as stop:
            built: Built = stop.value
        finally:
            steps.close()
    if json:
        write_document(json_module.dumps(built.family.model_dump(mode="json"), indent=1) + "\n")
    elif quiet:
        say(f"{len(built.family.members)} models in {out}")
    else:
        from bdaudit.report.family_terminal import print_family

        print_family(built.family, stdout_console())
        say(f"wrote {out / 'family.json'}")
    for name, error in built.failed.items():
        tell(f"bdaudit: {name}: {error}")
    if built.failed:
        raise typer.Exit(EXIT_INTERNAL)


def _announce(build: Build) -> None:
    """Print on stderr what exists, what is missing and what is out of date."""
    n = len(build.wanted)
    tell(f"{n - len(build.missing)} of {n} are there, {len(build.missing)} to make")
    for note in build.shop.parts.notes:
        tell(f"note: {note}")
    for name, changes in build.stale.items():
        tell(f"stale: {name}: {'; '.join(changes[:3])}")
    for name in build.strangers:
        tell(f"left alone: models/{name} is not, or no longer, in the family file")


def _show_costs(build: Build, workers: int) -> None:
    """List what would be made, with what it takes."""
    from rich import box
    from rich.table import Table

    from bdaudit.zoo.costs import estimate_costs

    estimates = estimate_costs(build)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("to make", overflow="fold", min_width=12)
    table.add_column("made from", overflow="fold")
    table.add_column("about", justify="right", no_wrap=True)
    for estimate in estimates:
        told = f"{estimate.seconds:.0f} s" + ("" if estimate.measured else " *")
        table.add_row(estimate.recipe.name, ", ".join(estimate.recipe.needs) or "-", told)
    stdout_console().print(table)
    total = sum(estimate.seconds for estimate in estimates)
    say(
        f"{len(estimates)} to make, about {total / 60:.1f} minutes of one worker"
        + (f", {total / 60 / workers:.1f} with {workers}" if workers > 1 else "")
        + ", and relearning"
    )
    if any(not estimate.measured for estimate in estimates):
        say(
            "* estimated from passes of an untrained network; some defences take several times "
            "as long"
        )


# -- while it is built -----------------------------------------------------------------------------


class _Display(Protocol):
    def hear(self, event: Event) -> None: ...


class _Silent:
    def hear(self, event: Event) -> None:
        """Show nothing."""


class _Lines:
    """One line on stderr for everything that is done: for logs and pipes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0  # relearning comes on top of the total

    def hear(self, event: Event) -> None:
        from bdaudit.engines import Failed, Finished

        if isinstance(event, Finished):
            self._done += 1
            told = f"{_made_of(event.result)}, {event.elapsed_s:.1f} s"
            self._total = max(self._total, self._done)
            tell(f"[{self._done}/{self._total}] {event.key}: {told}")
        elif isinstance(event, Failed):
            tell(f"failed: {event.key}: {event.error}")


class _Table:
    """A bar for all, one line for every task that runs, and what was done scrolling by above."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self.bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=stderr_console(),
            transient=True,
        )
        self._all = self.bars.add_task("family", total=total, note=f"0 of {total}")
        self._total = total
        self._done = 0
        self._rows: dict[str, object] = {}

    def hear(self, event: Event) -> None:
        from bdaudit.engines import Advanced, Failed, Finished, Started

        if isinstance(event, Started):
            self._drop(event.key)
            self._rows[event.key] = self.bars.add_task(f"  {event.key}", total=None, note="")
        elif isinstance(event, Advanced):
            progress = event.progress
            self.bars.update(
                self._rows[event.key],  # type: ignore[arg-type]
                completed=progress.done,
                total=progress.total,
                note=on_one_line(progress.step),
            )
        else:
            self._drop(event.key)
            if isinstance(event, Finished):
                self._done += 1
                told = f"{_made_of(event.result)}, {event.elapsed_s:.1f} s"
                self.bars.console.print(on_one_line(f"{event.key}: {told}"))
            elif isinstance(event, Failed):
                self.bars.console.print(on_one_line(f"failed: {event.key}: {event.error}"))
            self._total = max(self._total, self._done)
            self.bars.update(
                self._all,
                completed=self._done,
                total=self._total,
                note=f"{self._done} of {self._total}",
            )

    def _drop(self, key: str) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self.bars.remove_task(row)  # type: ignore[arg-type]


@contextmanager
def _showing(build: Build, silent: bool) -> Iterator[_Display]:
    if silent:
        yield _Silent()
    elif not stderr_is_terminal():
        yield _Lines(len(build.missing))
    else:
        table = _Table(len(build.missing))
        with table.bars:
            yield table


def _made_of(result: object) -> str:
    """Return what came of a task, in a few words."""
    from bdaudit.zoo.folder import Made

    if not isinstance(result, Made):
        return "relearned" if result is None else str(result)
    if result.measured is None:
        return "made"
    asr = result.measured.asr
    told = f"clean accuracy {result.measured.clean_acc.value:.3f}"
    return told if asr is None else f"{told}, trigger alone {asr.value:.3f}"
