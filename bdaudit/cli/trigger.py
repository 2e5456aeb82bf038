"""`bdaudit trigger`: look at a trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bdaudit.cli import options
from bdaudit.cli.exits import reporting_errors
from bdaudit.cli.output import check_writable
from bdaudit.cli.streams import say

__all__ = ["app"]

app = typer.Typer(name="trigger", help="Look at a trigger file.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a trigger file."""


@app.command()
@reporting_errors
def preview(
    trigger: Annotated[str, typer.Argument(help="Trigger file (TOML).", show_default=False)],
    data: options.Data,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("trigger-preview.png"),
    images: Annotated[int, typer.Option(help="Images to show.", min=1)] = 6,
    image_shape: Annotated[
        str | None,
        typer.Option(help="Bring the images to C,H,W first, where they differ in size."),
    ] = None,
    classes: options.Classes = None,
    allow_trigger_code: options.AllowTriggerCode = False,
    debug: options.Debug = False,
) -> None:
    """Write a PNG strip of images clean, triggered, and their difference times ten."""
    from bdaudit.auditing.preview import preview_trigger

    check_writable(out)
    preview_trigger(
        trigger,
        data=data,
        out=out,
        n=images,
        image_shape=options.read_shape(image_shape),
        classes=classes,
        allow_trigger_code=allow_trigger_code,
    )
    say(f"wrote {out}")
