"""Where and in which precision things are computed, and from which seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

from bdaudit.cases.settings import ComputeSettings
from bdaudit.precision import settled
from bdaudit.settings import Precision

__all__ = ["Compute", "derive_generator"]


@dataclass(frozen=True)
class Compute:
    """Where everything is computed, from which seed and in which arithmetic.

    Attributes:
        device: Of models and images.
        seed: From which every random draw derives.
        batch_size: Images in one forward pass when scoring.
        precision: Of attacks, their scoring, and everything that is trained.
    """

    device: torch.device
    seed: int
    batch_size: int
    precision: Precision = "float32"

    @classmethod
    def of(cls, settings: ComputeSettings, device: torch.device) -> Compute:
        """Return what settings ask for, on the device that they come to here."""
        precision = settled(settings.precision, str(device))
        return cls(device, settings.seed, settings.batch_size, precision)

    @property
    def autocast(self) -> Literal["bf16"] | None:
        """The precision as the methods' own settings call it."""
        return "bf16" if self.precision == "bfloat16" else None


def derive_generator(seed: int, *parts: object) -> torch.Generator:
    """Return a CPU generator seeded from `seed` and what is being done.

    The same parts give the same stream, so every model under comparison meets the same attack,
    and adding a step to an audit does not shift the draws of the others.
    """
    text = "/".join(str(part) for part in (seed, *parts))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
