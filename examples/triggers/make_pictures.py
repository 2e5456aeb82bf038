"""Make the pictures and the grid that the trigger files beside this script name.

    python examples/triggers/make_pictures.py

The same seed gives the same files. The trigger files themselves are written by hand.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bdaudit.triggers import control_grid, elastic_grid

HERE = Path(__file__).parent
IMAGE_SIZE = (28, 28)  # a warping grid has the size of the images it is for


def main() -> None:
    """Write checkerboard.png, rings.png and wanet_grid.safetensors."""
    checkerboard = np.indices((3, 3)).sum(axis=0) % 2 == 0
    Image.fromarray(np.uint8(255 * checkerboard)).save(HERE / "checkerboard.png")

    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    rings = 0.5 + 0.5 * np.cos(12 * np.pi * np.hypot(x, y))
    Image.fromarray(np.uint8(255 * rings)).save(HERE / "rings.png")

    control = control_grid(4, torch.Generator().manual_seed(0))
    grid = elastic_grid(control, IMAGE_SIZE, strength=0.5)
    save_file({"grid": grid.contiguous()}, HERE / "wanet_grid.safetensors")


if __name__ == "__main__":
    main()
