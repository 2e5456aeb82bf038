"""`bdaudit trigger`: look at a trigger, or make a file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.bundles import Only, Required, taking_tables
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import check_writable
from bdaudit.cli.streams import say
from bdaudit.settings import Inputs

__all__ = ["app"]

app = typer.Typer(name="trigger", help="Look at a trigger file, or make one.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a trigger file, or make one."""


@app.command()
@reporting_errors
@taking_tables
def preview(
    *,
    trigger: Annotated[str, typer.Argument(help="Trigger file (TOML).", show_default=False)],
    inputs: Annotated[
        Inputs,
        Only("data", "task", "classes", "label_column", "image_column", "allow_trigger_code"),
        Required("data"),
    ],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("trigger-preview.png"),
    images: Annotated[int, typer.Option(help="Images to show.", min=1)] = 6,
    image_shape: Annotated[
        str | None,
        typer.Option(help="Resize the images to C,H,W first if they differ in size."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a PNG strip of images clean, triggered, and their difference times ten."""
    from bdaudit.auditing.preview import preview_trigger

    check_writable(out)
    notes = preview_trigger(
        trigger,
        data=str(inputs.data),
        out=out,
        n=images,
        task=inputs.task,
        image_shape=options.read_shape(image_shape),
        classes=None if inputs.classes is None else Path(inputs.classes),
        image_column=inputs.image_column,
        label_column=inputs.label_column,
        allow_trigger_code=inputs.allow_trigger_code,
    )
    for note in notes:
        say(f"note: images: {note}")
    say(f"wrote {out}")


@app.command(name="import")
@reporting_errors
def import_(
    *,
    source: Annotated[
        Path,
        typer.Argument(
            help="BackdoorBench record folder with bd_test_dataset/, or an attack's settings "
            "(.yaml, info.pickle); BackdoorBox pattern (.pt, .npy, .safetensors or a picture); "
            "TrojanZoo mark (.npy).",
            show_default=False,
        ),
    ],
    target: Annotated[
        int | None,
        typer.Option(
            help="Index of the target class, where the source does not say.",
            min=0,
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        Path | None,
        typer.Option(
            help="Weight of a BackdoorBox pattern: how much of it counts at each pixel.",
            show_default=False,
        ),
    ] = None,
    offset: Annotated[
        str | None,
        typer.Option(
            help="Place of a TrojanZoo mark: ROWS,COLUMNS from the top left.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Trigger file to write; trigger.toml beside the source if not given.",
            show_default=False,
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a trigger file of what BackdoorBench, BackdoorBox or TrojanZoo keeps."""
    from bdaudit.triggers import import_trigger

    place = options.read_pair(offset)
    made = import_trigger(source, target=target, weight=weight, offset=place, out=out)
    say(f"wrote {made}")
