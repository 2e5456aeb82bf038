"""Twins, a sample and a trigger on disk, as a user would have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from bdaudit.models import save_model
from tests.twins import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    dormant_twin,
    innocent_twin,
    original_twin,
    removed_twin,
    twin_sample,
)

TRIGGER = 'kind = "additive"\n[target]\nlabel = 0\n[additive]\ndelta = "delta.npy"\n'


def write_twin_files(folder: Path) -> Path:
    """Write all twins, `clean.npz`, `trigger.toml` and what it needs; return the folder."""
    twins: dict[str, nn.Module] = {
        "original": original_twin(),
        "dormant": dormant_twin(),
        "removed": removed_twin(),
        "innocent": innocent_twin(),
    }
    for name, net in twins.items():
        save_model(
            folder / f"{name}.safetensors",
            net,
            arch=None,
            num_classes=NUM_CLASSES,
            image_shape=IMAGE_SHAPE,
        )
    sample = twin_sample(400, seed=1)
    np.savez(folder / "clean.npz", images=sample.images.numpy(), labels=sample.labels.numpy())
    delta = np.zeros(IMAGE_SHAPE, dtype=np.float32)
    delta[0, 7, 7] = 0.75
    np.save(folder / "delta.npy", delta)
    (folder / "trigger.toml").write_text(TRIGGER)
    return folder
