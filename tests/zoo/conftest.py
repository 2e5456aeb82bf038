"""A data set of the demonstration's real images, and a family small enough to build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FAMILY = """
[family]
name = "small"
seed = 3

[data]
path = "images.npz"
image_shape = [1, 14, 14]
pool = 600
defense = 100
sample = 100
measure = 150

[model]
arch = "bdaudit/preactresnet18_w8"

[training]
images = 500
epochs = 4
learning_rate = 0.05
batch_size = 20

[[attack]]
type = "badnets"
seeds = [1]

[[defense]]
name = "ft"
type = "finetune"
of = ["badnets-*"]
settings = { tuning = { n_epochs = 1 } }

[clean]
innocent = ["badnets-r10-s1"]
references = ["ft"]

[relearning]
draws = 2
steps = [2, 4]
learning_rates = [0.003]
"""


@pytest.fixture(scope="session")
def small_data(demo_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's thousand images, dealt into a train and a test part."""
    folder = tmp_path_factory.mktemp("small")
    sample = np.load(demo_files / "clean.npz")
    np.savez(
        folder / "images.npz",
        images_train=sample["images"][:720],
        labels_train=sample["labels"][:720],
        images_test=sample["images"][720:],
        labels_test=sample["labels"][720:],
    )
    (folder / "family.toml").write_text(FAMILY)
    return folder
