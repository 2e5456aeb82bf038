"""A picture of a trigger on real images."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from bdaudit.cases.fetching import fetch_trigger
from bdaudit.data import load_for_task
from bdaudit.errors import ConfigError
from bdaudit.fetching import fetch
from bdaudit.foundation.progress import finish
from bdaudit.foundation.sources import RemoteFile, parse_file
from bdaudit.foundation.tasks import Task
from bdaudit.foundation.writing import write_atomically
from bdaudit.triggers import preview_strip, read_trigger

__all__ = ["preview_trigger"]

_N_READ = 200


def preview_trigger(
    trigger: str | Path,
    *,
    data: str | Path,
    out: Path,
    n: int,
    task: Task = "classification",
    image_shape: tuple[int, int, int] | None = None,
    classes: Sequence[str] | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    allow_trigger_code: bool = False,
) -> tuple[str, ...]:
    """Write a PNG strip: clean, triggered, difference times ten.

    Args:
        trigger: Trigger file.
        data: Clean labelled images, of which a few hundred at most are read.
        out: The PNG; it appears whole or not at all.
        n: Images to show.
        task: For "detection" the data are pictures with annotated objects, and the box is outlined
            that the trigger is for.
        image_shape: (C, H, W) to bring the images to, where they differ in size.
        classes: Class names, or a file of them.
        image_column: Of data in a table: the column of images or of their paths.
        label_column: Likewise the column of labels.
        allow_trigger_code: Whether the trigger file may name Python code to run.

    Returns:
        What of the images was dropped, ignored, converted or guessed when they were read.

    Raises:
        InputError: Trigger or data cannot be read, or do not fit each other.
        ConfigError: A column is named of data with boxes.
    """
    if task == "detection" and (image_column or label_column) is not None:
        raise ConfigError("image_column, label_column: pictures with boxes are in no table")
    if isinstance(named := parse_file(trigger), RemoteFile):
        trigger = finish(fetch_trigger(named.url))
    if isinstance(named := parse_file(data), RemoteFile):
        data = fetch(named.url)
    stamp = read_trigger(trigger, allow_code=allow_trigger_code)
    sample = load_for_task(
        data,
        task=task,
        image_shape=image_shape,
        classes=classes,
        limit=_N_READ,
        image_column=image_column,
        label_column=label_column,
    )
    picture = preview_strip(sample, stamp, n=n)
    png = BytesIO()
    picture.save(png, format="PNG")
    write_atomically(out, png.getvalue())
    return sample.notes
