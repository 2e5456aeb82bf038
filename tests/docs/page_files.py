"""The files that the pages speak of: the demonstration's, under the names of the pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import bdaudit

__all__ = ["SMALL", "write_page_files"]

SMALL = bdaudit.AuditSettings(
    eps=(0.02,),
    passes=2,
    controls=("no_trigger",),
    bec=False,
    relearn=None,
    stand_ins=0,
    compute=bdaudit.ComputeSettings(device="cpu"),
    split=bdaudit.SplitSettings(craft=40, held_out=220),
)
"""An audit that is over at once."""


def write_page_files(folder: Path, demo_files: Path) -> None:
    """Copy the demonstration's files to a new folder, and put beside them what pages call alike."""
    shutil.copytree(demo_files, folder)
    shutil.copy(folder / "dormant.safetensors", folder / "defended.safetensors")
    shutil.copy(folder / "innocent-1.safetensors", folder / "innocent.safetensors")
    sample = np.load(folder / "clean.npz")
    for index in range(300):
        inside = folder / "clean" / str(sample["labels"][index])
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample["images"][index].squeeze()).save(inside / f"{index}.png")
